"""Finetuning an encoder on a task, and its accuracy after every epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from megacore.checkpoint import decide
from megacore.durable import published
from megacore.errors import EXIT_OK, DataError
from megacore.evaluation.examples import ExampleFile
from megacore.evaluation.samples import samples_per_epoch
from megacore.evaluation.settings import TaskRun
from megacore.evaluation.task_family import ACCURACY, KINDS, TaskFamily
from megacore.parallel.groups import ParallelGroups
from megacore.training.live_view import Screen
from megacore.training.loop import finish, train
from megacore.training.pretrain import training_session
from megacore.training.run_config import RunConfig
from megacore.training.trainer import Trainer

_ONLY_SCORED = -1


def finetune(
    evaluation: TaskRun, *, screen: Screen | None = None, groups: ParallelGroups | None = None
) -> int:
    """Finetune and measure, or measure only, as the settings say.

    The run continues from `--load` where that has a checkpoint, and otherwise starts from the
    weights of `--pretrained-checkpoint`. At the end of every epoch it is saved and measured.

    Args:
        evaluation: Settings.
        screen: Prints lines; by default standard output.
        groups: The groups of this process; by default those that the launcher's variables and the
            settings describe.

    Returns:
        Exit code 0.

    Raises:
        MegacoreError: The run cannot go on; the message says why.
    """
    task = evaluation.task
    kind, epochs = KINDS[task.task or ""], task.epochs or 0
    training = [kind.read(path) for path in task.train_data or () if epochs]
    valid = [kind.read(path) for path in task.valid_data or ()]
    _check_labels(training if epochs else [], "be trained on")
    _check_labels(valid if epochs else [], "be measured between epochs")
    batch_size = evaluation.batch_size
    count = sum(len(file.examples) for file in training)
    per_epoch = samples_per_epoch(count, batch_size, keep_last=task.keep_last) // batch_size
    if epochs and not per_epoch:
        raise DataError(
            f"{', '.join(task.train_data or ())}: {count} examples do not fill one batch of "
            f"{batch_size}: use a smaller batch, or --keep-last"
        )
    run = evaluation.finetuning_run(per_epoch * epochs, save_interval=per_epoch).resolved()
    if epochs and decide(run.checkpoint).weights_only:
        # The pretrained model has no head for the task; what it lacks is listed when it is loaded.
        run = replace(run, checkpoint=replace(run.checkpoint, dist_ckpt_strictness="log_all"))
    family = TaskFamily(kind, train=training, valid=valid, keep_last=task.keep_last)
    session = training_session(run, evaluation.origins, screen=screen, groups=groups, family=family)
    with session as trainer:
        report = _Report(trainer, family, valid, run)
        for file in (*training, *valid):
            report.say_about(file)
        if not epochs:
            report.accuracies(_ONLY_SCORED)
            report.predictions(Path(run.checkpoint.load or "."))
            return EXIT_OK

        def after_step() -> None:
            if trainer.iteration % per_epoch == 0:
                trainer.save_for_good()
                report.accuracies(trainer.iteration // per_epoch - 1)

        if not train(trainer, after_step=after_step):
            finish(trainer)
    return EXIT_OK


def _check_labels(files: Sequence[ExampleFile], use: str) -> None:
    for file in files:
        if any(example.label < 0 for example in file.examples):
            raise DataError(f"{file.path}: has no labels, so that it cannot {use}")


class _Report:
    """Accuracy on the files that are measured, and predictions."""

    def __init__(
        self, trainer: Trainer, family: TaskFamily, files: Sequence[ExampleFile], run: RunConfig
    ) -> None:
        self._parts = trainer.parts
        self._family = family
        self._files = files
        self._run = run

    def say_about(self, file: ExampleFile) -> None:
        """How many examples a file has, and what was left out."""
        lines = [f" > {len(file.examples)} examples in {file.path}", *file.remarks]
        for line in lines:
            self._parts.screen.line(line)

    def accuracies(self, epoch: int) -> None:
        """A line for every file that has labels, and one for all of them together."""
        timer = self._parts.timers["interval-time"]
        running = timer.is_running
        if running:
            timer.stop()
        say = self._parts.screen.line
        say("calculating metrics ...")
        all_correct = all_examples = 0
        for file in self._files:
            if file.examples[0].label < 0:
                say(f" > |epoch: {epoch}| {file.name} has no labels: it is not measured")
                continue
            started = time.perf_counter()
            correct, total = self._measure(file)
            seconds = time.perf_counter() - started
            say(
                f" > |epoch: {epoch}| metrics for {file.name}: correct / total = {correct} / "
                f"{total} = {100.0 * correct / total:.4f} %, elapsed time (sec): {seconds:.3f}"
            )
            all_correct += correct
            all_examples += total
        if all_examples:
            say(
                f" >> |epoch: {epoch}| overall: correct / total = {all_correct} / {all_examples} "
                f"= {100.0 * all_correct / all_examples:.4f} %"
            )
        if running:
            timer.start()

    def _measure(self, file: ExampleFile) -> tuple[int, int]:
        """Examples of a file that the model gets right, and all of them."""
        batches, count = self._family.whole_file(file, self._run, self._parts.groups)
        passed = self._parts.passes.evaluate(batches, num_microbatches=1, repeats=count)
        total = round(passed.num_counted)
        return round(passed.means[ACCURACY] * total), total

    @torch.no_grad()
    def predictions(self, directory: Path) -> None:
        """Writes predictions_NAME.jsonl for every file: uid, label and probabilities.

        Only a run of one process, which has the whole model, does so.
        """
        parts = self._parts
        if parts.groups.world_size > 1:
            parts.screen.line("predictions are written by a run of one process only")
            return
        (model,) = parts.learner.model.stages.values()
        model.eval()
        for file in self._files:
            batches, _ = self._family.whole_file(file, self._run, parts.groups)
            rows = (
                row
                for batch in map(partial(self._family.to_device, device=parts.device), batches)
                for row in model(batch.tokens, batch.lengths, types=batch.types)
                .float()
                .softmax(-1)
                .tolist()
            )
            path = directory / f"predictions_{file.name}.jsonl"
            with published(path) as out:
                # Rows that only fill up the last batch come after the examples.
                for example, row in zip(file.examples, rows, strict=False):
                    label = None if example.label < 0 else example.label
                    record = {"uid": example.uid, "label": label, "probabilities": row}
                    out.write(json.dumps(record).encode() + b"\n")
            parts.screen.line(f"wrote {path}")

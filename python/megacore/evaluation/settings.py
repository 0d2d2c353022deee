"""The settings of an evaluation: those of training, with the task's, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from megacore.config.faults import fault, required
from megacore.config.layers import Origin
from megacore.config.parser import merge_faults, read_layers, show_notes
from megacore.config.report import format_config
from megacore.config.settings import settings_of, value_faults
from megacore.errors import Fault, Information
from megacore.evaluation.config import TaskConfig
from megacore.evaluation.retrieval.config import BiencoderConfig, RetrievalConfig
from megacore.evaluation.training_run import encoder_run
from megacore.parallel.launch import launch_faults, launched_world_size
from megacore.training.cli import checkpoint_arguments
from megacore.training.run_config import (
    ReadCheckpoint,
    RunConfig,
    config_types,
    with_checkpoint,
)

# Stands for the length of a finetuning before its data have been read.
_MANY = 1 << 40
_DESCRIPTION = "Score a model on a task. Flags have the names of Megatron-LM's tasks/main.py."


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """What is evaluated, and how.

    Attributes:
        task: The task and its files.
        run: Model, tokenizer, batches, checkpoints and the rest; not resolved, because the length
            of a finetuning follows from its data.
        retrieval: Evidence, index and questions.
        origins: Where each value came from.
    """

    task: TaskConfig
    run: RunConfig
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def is_given(self, name: str) -> bool:
        """Whether the command line or a file sets the field of this name."""
        return self.origins.get(name, Origin()).kind != "default"

    def faults(self) -> Iterator[Fault]:
        """Every rule that the values break."""
        yield from self.task.faults()
        if self.task.is_zero_shot:
            yield from self._zero_shot_faults()
        elif self.task.is_finetuning:
            yield from self._finetuning_faults()
        elif self.task.task is not None:
            yield from self._plain_faults()
            yield from self._retrieval_faults()

    def _plain_faults(self) -> Iterator[Fault]:
        """Of tasks that take a model as it is, with its settings."""
        for component in (*self.run.components, self.retrieval):
            yield from value_faults(component)
        if self.run.checkpoint.load is None:
            yield required("--load")

    def _retrieval_faults(self) -> Iterator[Fault]:
        retrieval = self.retrieval
        if retrieval.qa_data_dev is None and retrieval.qa_data_test is None:
            yield required("--qa-data-dev")
        for name, value in (
            ("--evidence-data-path", retrieval.evidence_data_path),
            ("--embedding-path", retrieval.embedding_path),
        ):
            if value is None:
                yield required(name)
        if self.run.parallel.world_size > 1:
            given = {"--task": self.task.task, "processes": self.run.parallel.world_size}
            yield fault("MC1347", given, allowed="1")

    def _zero_shot_faults(self) -> Iterator[Fault]:
        yield from self._plain_faults()
        yield from self.run.precision.faults()
        parallel = self.run.parallel
        sizes = {
            "--tensor-model-parallel-size": parallel.tensor_model_parallel_size,
            "--pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
            "--context-parallel-size": parallel.context_parallel_size,
        }
        larger = {name: size for name, size in sizes.items() if size > 1}
        if larger:
            yield fault("MC1342", larger, allowed="1")

    def _finetuning_faults(self) -> Iterator[Fault]:
        run, name = self.run, self.task.task
        training, data = run.training, run.data
        given: dict[str, object] = {
            "--train-iters": training.train_iters,
            "--train-samples": training.train_samples,
            "--rampup-batch-size": run.batch.rampup_batch_size,
            "--data-path": data.data_path,
            "--train-data-path": data.train_data_path,
            "--valid-data-path": data.valid_data_path,
            "--test-data-path": data.test_data_path,
            "--mock-data": data.mock_data or None,
        }
        wrong = {flag: value for flag, value in given.items() if value is not None}
        if wrong:
            allowed = "--epochs, --train-data and --valid-data"
            yield fault("MC1344", {"--task": name, **wrong}, allowed=allowed)
        if not run.model.bert_binary_head:
            yield fault("MC1345", {"--task": name, "--bert-no-binary-head": ""})
        if run.parallel.pipeline_model_parallel_size > 1:
            size = run.parallel.pipeline_model_parallel_size
            given = {"--task": name, "--pipeline-model-parallel-size": size}
            yield fault("MC1346", given, allowed="1")
        if self.task.epochs == 0 and run.checkpoint.load is None:
            yield required("--load")
        yield from self.finetuning_run(_MANY, save_interval=_MANY).faults()

    @property
    def batch_size(self) -> int:
        """Examples of one step of finetuning."""
        batch = self.run.batch
        default = (batch.micro_batch_size or 1) * self.run.parallel.data_parallel_size
        return batch.global_batch_size or default

    def finetuning_run(self, iterations: int, *, save_interval: int) -> RunConfig:
        """The settings of training, not resolved, that this finetuning comes to.

        Args:
            iterations: Its length.
            save_interval: Where nothing is said: between two checkpoints.
        """
        run, task = self.run, self.task
        scored_only = task.epochs == 0
        checkpoint = run.checkpoint
        if checkpoint.save is not None and checkpoint.save_interval is None:
            checkpoint = replace(checkpoint, save_interval=save_interval)
        if scored_only:
            checkpoint = replace(checkpoint, no_load_optim=True, no_load_rng=True)
        data = replace(
            run.data,
            dataloader_type="single",
            train_data_path=task.train_data,
            valid_data_path=task.valid_data,
        )
        training = replace(
            run.training,
            train_iters=None if scored_only else iterations,
            train_samples=None,
            skip_train=scored_only,
            # Batches that are filled up have fewer examples than others: each example counts alike.
            calculate_per_token_loss=run.training.calculate_per_token_loss or task.keep_last,
        )
        run = replace(run, checkpoint=checkpoint, data=data, training=training)
        return encoder_run(run)


def parse_task(
    argv: Sequence[str],
    *,
    read_checkpoint: ReadCheckpoint = checkpoint_arguments,
    environment: Mapping[str, str] | None = None,
) -> TaskRun:
    """An evaluation from its command line and files.

    Args:
        argv: Words of the command line, without the program name.
        read_checkpoint: With `--use-checkpoint-args`, called with the run as given; returns the
            settings that the checkpoint was saved with.
        environment: Variables of the launcher; by default those of this process.

    Raises:
        ConfigError: Every fault that could be found.
        Information: `--help` or `--print-config` was given.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        [TaskConfig, RetrievalConfig, BiencoderConfig, *types.values()],
        argv,
        prog="megacore evaluate",
        description=_DESCRIPTION,
        megatron=True,
    )
    faults = without_own(faults, (RetrievalConfig, BiencoderConfig))
    origins = parsed.origins
    run = RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()})
    faults.extend(launch_faults(environment))
    if run.checkpoint.use_checkpoint_args and parsed.configs[TaskConfig].is_finetuning:
        run, origins = with_checkpoint(run, parsed.origins, read_checkpoint(run))
    run = run.in_world(launched_world_size(environment))
    result = TaskRun(
        task=parsed.configs[TaskConfig],
        run=run,
        retrieval=parsed.configs[RetrievalConfig],
        origins=origins,
    )
    faults.extend(result.faults())
    merge_faults(faults, doubtful)
    show_notes([*parsed.notes, *result.task.notes()])
    if parsed.print_config:
        raise Information(format_config([result.task, result.retrieval, *run.components], origins))
    if result.task.is_zero_shot:
        run = replace(run, parallel=run.parallel.resolved())
    return replace(result, run=run)


def without_own(faults: Sequence[Fault], configs: Sequence[type]) -> list[Fault]:
    """Faults without those of flags that only this command has.

    The table of Megatron's flags says what becomes of them in `megacore train`.
    """
    own = {name for config in configs for setting in settings_of(config) for name in setting.names}
    return [one for one in faults if one.id != "MC0011" or not own.issuperset(one.given)]

"""Tasks that score a GPT as it is: WIKITEXT103 and LAMBADA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice

import torch

from megacore.config.faults import fault
from megacore.config.settings import refuse
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import Tokenizer
from megacore.errors import ConfigError, Fault
from megacore.evaluation import lambada, wikitext
from megacore.evaluation.config import TaskConfig
from megacore.evaluation.scoring import Score, Span, score_spans
from megacore.evaluation.settings import TaskRun
from megacore.inference.loading import load_model
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.parallel.groups import Group, ParallelGroups
from megacore.training.agreement import summed
from megacore.training.run_config import CHECKPOINT_DECIDES, CHECKPOINT_FILLS

Say = Callable[[str], None]

# Flags about the model that change nothing, or are other names of what is compared anyway.
_FREE = (
    "add_position_embedding",
    "apply_query_key_layer_scaling",
    "max_position_embeddings",
    "use_rotary_position_embeddings",
)


def evaluate_zero_shot(
    evaluation: TaskRun, *, groups: ParallelGroups, device: torch.device, say: Say
) -> str:
    """Scores a GPT on a task.

    Args:
        evaluation: Settings.
        groups: The processes; each scores a share.
        device: Where this process computes.
        say: Told about progress.

    Returns:
        The results in one line, the same in every process.

    Raises:
        ConfigError: The flags describe another model than the checkpoint.
        CheckpointError, DataError: Something cannot be read.
    """
    model, tokenizer, config = _loaded(evaluation, device)
    task, run = evaluation.task, evaluation.run
    scorer = SharedScorer(
        model,
        vocab_size=tokenizer.vocab_size,
        batch_size=run.batch.micro_batch_size or 1,
        log_interval=run.logging.log_interval,
        group=groups.dp,
        device=device,
        say=say,
    )
    length = run.data.length or config.max_position_embeddings or 1
    return score_task(task, tokenizer, scorer, length=length, say=say)


def score_task(
    task: TaskConfig, tokenizer: Tokenizer, scorer: SharedScorer, *, length: int, say: Say
) -> str:
    """The results of a model, as `evaluate_zero_shot`; `length` tokens are seen at once."""
    path = (task.valid_data or ("",))[0]
    if task.task == "LAMBADA":
        passages = lambada.read_passages(path, tokenizer, strict=task.strict_lambada, length=length)
        num_correct = scorer.total(passages, lambda score: float(score.is_greedy))
        return lambada.report(num_correct, len(passages))
    step = task.overlapping_eval
    if step > length:
        given = {"--overlapping-eval": step, "--seq-length": length}
        raise ConfigError([fault("MC1343", given, allowed=f"at most {length}")])
    text = wikitext.read_token_text(path, tokenizer)
    for remark in text.remarks:
        say(remark)
    spans = list(wikitext.windows(text.tokens, length=length, step=step))
    return wikitext.report(scorer.total(spans, lambda score: -score.total), text)


class SharedScorer:
    """Scores sequences in batches; each process of a group has a share of them.

    Args:
        model: In eval mode, the whole of it in every process.
        vocab_size: Ids of the tokenizer.
        batch_size: Sequences in one pass.
        log_interval: Batches between two lines of progress.
        group: The processes.
        device: Where the group's backend wants its tensors.
        say: Told about progress.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        vocab_size: int,
        batch_size: int,
        group: Group,
        device: torch.device,
        say: Say,
        log_interval: int = 100,
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._batch_size = batch_size
        self._interval = log_interval
        self._group = group
        self._device = device
        self._say = say

    def total(self, spans: Sequence[Span], value: Callable[[Score], float]) -> float:
        """Sum of a value over all sequences and processes, in float64."""
        total = 0.0
        # Every sequence belongs to one process: nothing is counted twice to fill up a share.
        mine = iter(spans[self._group.rank :: self._group.size])
        number = 0
        while batch := list(islice(mine, self._batch_size)):
            if number % self._interval == 0:
                self._say(f"> working on iteration: {number}")
            scores = score_spans(self._model, batch, vocab_size=self._vocab_size)
            total += sum(map(value, scores))
            number += 1
        return summed([total], self._group, self._device)[0]


def _loaded(evaluation: TaskRun, device: torch.device) -> tuple[GPTModel, Tokenizer, ModelConfig]:
    """The model of `--load`, checked against what the flags say about it."""
    run = evaluation.run
    given = {
        field.name: getattr(run.tokenizer, field.name)
        for field in fields(TokenizerConfig)
        if evaluation.is_given(field.name)
    }
    dtype = "float16" if run.precision.fp16 else "bfloat16" if run.precision.bf16 else "auto"
    model, tokenizer, config = load_model(
        run.checkpoint.load or "",
        step=run.checkpoint.ckpt_step,
        dtype=dtype,
        device=device,
        tokenizer_files=given,
    )
    refuse(_model_faults(evaluation, config, model, tokenizer))
    return model, tokenizer, config


def _model_faults(
    evaluation: TaskRun, config: ModelConfig, model: GPTModel, tokenizer: Tokenizer
) -> Iterator[Fault]:
    names = [
        field.name
        for field in fields(ModelConfig)
        if field.name in (*CHECKPOINT_FILLS, *CHECKPOINT_DECIDES)
    ]
    said = {n: getattr(evaluation.run.model, n) for n in names if evaluation.is_given(n)}
    depth = said.get("num_layers", said.get("encoder_num_layers", config.depth))
    # Derived settings follow from what the flags change, as they would in training.
    changed = replace(config, **{**said, "num_layers": depth, "encoder_num_layers": depth})
    stored, wanted = config.resolved(), changed.resolved()
    for name in said:
        mine, theirs = getattr(wanted, name), getattr(stored, name)
        if name not in _FREE and mine != theirs:
            given = {f"--{name.replace('_', '-')}": mine}
            yield fault("MC1341", given, allowed=f"{theirs}, as in the checkpoint")
    positions, length = model.max_positions, evaluation.run.data.length
    if positions is not None and length is not None and length > positions:
        given = {"--seq-length": length, "--max-position-embeddings": positions}
        yield fault("MC0603", given, allowed=f"at most {positions}")
    if tokenizer.vocab_size > model.padded_vocab_size:
        given = {"ids of the tokenizer": tokenizer.vocab_size}
        yield fault("MC1341", given, allowed=f"at most {model.padded_vocab_size}")

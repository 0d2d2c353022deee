"""The finetuning tasks as kinds of models that the training loop can train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megacore.data import build_loader
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError
from megacore.evaluation.examples import ExampleFile, read_mnli, read_qqp, read_race
from megacore.evaluation.samples import BatchMaker, TaskBatch, TaskSamples, samples_per_epoch
from megacore.models.classification import ClassificationModel
from megacore.models.multiple_choice import MultipleChoiceModel
from megacore.models.staged import StagedModel
from megacore.parallel.apply import MakeModel
from megacore.parallel.groups import ParallelGroups
from megacore.training.family import LM_LOSS, Family, SplitSamples
from megacore.training.run_config import RunConfig

ACCURACY = "accuracy"


@dataclass(frozen=True)
class TaskKind:
    """What tells one finetuning task from another.

    Attributes:
        read: Reads a file or folder.
        make_model: Makes the model.
        num_alternatives: Rows of the batch per example.
    """

    read: Callable[[str], ExampleFile]
    make_model: MakeModel
    num_alternatives: int = 1


KINDS: Mapping[str, TaskKind] = {
    "MNLI": TaskKind(read_mnli, partial(ClassificationModel, num_classes=3)),
    "QQP": TaskKind(read_qqp, partial(ClassificationModel, num_classes=2)),
    "RACE": TaskKind(read_race, partial(MultipleChoiceModel, num_alternatives=4), 4),
}


class TaskFamily(Family[TaskBatch]):
    """A finetuning task.

    Args:
        kind: Which.
        train: What to learn from.
        valid: What to measure.
        keep_last: Train on what does not fill a batch at the end of an epoch.
    """

    loss_names: Sequence[str] = (LM_LOSS, ACCURACY)

    def __init__(
        self,
        kind: TaskKind,
        *,
        train: Sequence[ExampleFile],
        valid: Sequence[ExampleFile],
        keep_last: bool,
    ) -> None:
        self._kind = kind
        self._train = [example for file in train for example in file.examples]
        self._valid = [example for file in valid for example in file.examples]
        self._keep_last = keep_last
        self._maker: BatchMaker | None = None
        self._vocab_size = 0

    @property
    def make_model(self) -> MakeModel:
        """Makes an encoder with the head of the task."""
        return self._kind.make_model

    def open_datasets(
        self,
        run: RunConfig,
        tokenizer: Tokenizer,
        *,
        wanted: tuple[int | None, int | None, int | None],
        may_build: bool,
        say: Callable[[str], None],
    ) -> SplitSamples:
        """See `Family`; the files have been read, and there are no indices to build."""
        self._vocab_size = tokenizer.vocab_size
        self._maker = BatchMaker(
            tokenizer,
            seq_length=run.data.seq_length or 0,
            num_alternatives=self._kind.num_alternatives,
        )
        batch_size = run.batch.global_batch_size or 1
        train = valid = None
        if wanted[0] is not None and self._train:
            train = TaskSamples(
                self._train,
                name="training data",
                num_samples=wanted[0],
                batch_size=batch_size,
                seed=run.training.seed,
                keep_last=self._keep_last,
            )
        if wanted[1] is not None and self._valid:
            valid = TaskSamples(
                self._valid,
                name="validation data",
                num_samples=wanted[1],
                batch_size=batch_size,
                keep_last=True,
            )
        return SplitSamples(train, valid, None)

    def whole_file(
        self, file: ExampleFile, run: RunConfig, groups: ParallelGroups
    ) -> tuple[Iterator[TaskBatch], int]:
        """All examples of a file once, in their order: micro-batches of this process, and how many.

        The last ones are filled up, so that every replica has equally many.
        """
        size = (run.batch.micro_batch_size or 1) * groups.dp.size
        count = samples_per_epoch(len(file.examples), size, keep_last=True)
        samples = TaskSamples(
            file.examples, name=file.path, num_samples=count, batch_size=size, keep_last=True
        )
        batches = build_loader(
            samples,
            make=partial(self.make_batch, vocab_size=self._vocab_size),
            data=run.data,
            micro_batch_size=run.batch.micro_batch_size or 1,
            consumed_samples=0,
            data_parallel_rank=groups.dp.rank,
            data_parallel_size=groups.dp.size,
        )
        return batches, count // size

    def make_batch(self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int) -> TaskBatch:
        """See `Family`."""
        if self._maker is None:
            raise DataError("the datasets have not been opened")
        return self._maker(dataset, samples, vocab_size=vocab_size)

    def counts(self, batch: TaskBatch) -> tuple[float, ...]:
        """Examples, for the loss and for the accuracy."""
        count = float(batch.weights.double().sum())
        return count, count

    def losses(
        self, model: StagedModel, batch: TaskBatch, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Sum of the cross entropies, and number of examples that are right."""
        logits: Tensor = model(batch.tokens, batch.lengths, types=batch.types, hidden=hidden)
        if not model.has_end:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        entropies = F.cross_entropy(wide, batch.labels, reduction="none")
        hits = (logits.argmax(-1) == batch.labels).float()
        return (entropies * batch.weights).sum(), (hits * batch.weights).sum()

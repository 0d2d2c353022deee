"""What the training loop asks of the kind of model that it trains.

The loop runs micro-batches through pipeline stages, accumulates gradients, updates, logs, saves
and resumes; it knows neither what a batch holds nor what a loss is of. A family says that: it opens
the datasets, makes micro-batches, and gives the sums of one or more losses with the number of
things that each is a sum of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore.data import build_datasets
from megacore.data.kinds import DatasetKind
from megacore.data.tokenizers import Tokenizer
from megacore.models.staged import StagedModel
from megacore.parallel.apply import MakeModel
from megacore.training.flops import ModelShape
from megacore.training.run_config import RunConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyBatch = TypeVar("AnyBatch", bound=DataclassInstance)
else:
    AnyBatch = TypeVar("AnyBatch")

LM_LOSS = "lm loss"


class Samples(Protocol):
    """A dataset as the loop knows it."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def __len__(self) -> int:
        """Number of samples."""


class SplitSamples(NamedTuple):
    """One dataset per split; None where nothing is wanted or there is no data."""

    train: Any
    valid: Any
    test: Any


class Family(ABC, Generic[AnyBatch]):
    """One kind of model, its batches and its losses.

    A batch is a dataclass; its tensors are moved to the device of the model, all else stays on the
    host.

    Attributes:
        loss_names: What the log calls the losses; the first one stands for the run in curves, in
            the live view and in checks for NaN.
        num_trained: The sum of the first so many is trained on; the others are only reported.
    """

    loss_names: Sequence[str] = (LM_LOSS,)
    num_trained: int = 1
    host_tensors: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def make_model(self) -> MakeModel:
        """Makes the whole model."""

    def dataset_kind(self, run: RunConfig) -> DatasetKind[Any] | None:
        """What samples are cut out of the files; None: those of a GPT."""
        return None

    def open_datasets(
        self,
        run: RunConfig,
        tokenizer: Tokenizer,
        *,
        wanted: tuple[int | None, int | None, int | None],
        may_build: bool,
        say: Callable[[str], None],
    ) -> SplitSamples:
        """Opens the files and builds, or finds, the indices.

        Args:
            run: Resolved settings.
            tokenizer: Of the run.
            wanted: Samples for training, validation and test; None: no such dataset.
            may_build: False: another process has written the indices.
            say: Told what takes long.

        Raises:
            DataError: A dataset cannot be read, or has nothing for a split that is wanted.
        """
        found = build_datasets(
            run.data,
            tokenizer,
            kind=self.dataset_kind(run),
            seed=run.training.seed,
            num_samples=wanted,
            may_build=may_build,
        )
        return SplitSamples(found.train, found.valid, found.test)

    @abstractmethod
    def make_batch(self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int) -> AnyBatch:
        """The micro-batch of some samples, on the host.

        Args:
            dataset: One of those that `open_datasets` gave.
            samples: int64 [b].
            vocab_size: Rows of the word embedding; every token id must be smaller.

        Raises:
            DataError: An id is not in the vocabulary, or the file is damaged.
        """

    @abstractmethod
    def counts(self, batch: AnyBatch) -> tuple[float, ...]:
        """Of how many things each loss is a sum, of a batch on the host."""

    @abstractmethod
    def losses(
        self, model: StagedModel, batch: AnyBatch, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """The sums [] of the losses of a micro-batch; hidden states from a part without the end.

        Args:
            model: A model or the part of one.
            batch: On the device.
            hidden: Output of the part before, for one that does not begin with the embedding.
        """

    def stage_length(self, run: RunConfig) -> int:
        """Tokens of one sequence whose hidden states go from stage to stage."""
        return run.data.seq_length or 0

    def shape(self, run: RunConfig, *, padded_vocab: int) -> ModelShape:
        """Sizes that operation and memory counts depend on."""
        return ModelShape.of(
            run.model, padded_vocab=padded_vocab, seq_length=run.data.seq_length or 0
        )

    def to_device(self, batch: AnyBatch, device: torch.device) -> AnyBatch:
        """The batch with its tensors on a device, but for those that the host reads."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor)
            and field.name not in self.host_tensors
        }
        return replace(batch, **moved)


def wide(x: Tensor) -> Tensor:
    """In the dtype of losses: float64 stays, all else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def mean_sum(sums: Sequence[Tensor], counts: Sequence[float], divisor: float) -> Tensor:
    """The loss that is differentiated: the sum of the means, over `divisor`.

    A micro-batch in which nothing counts has no loss and no gradient, not 0/0.
    """
    terms = [loss / (max(count, 1.0) * divisor) for loss, count in zip(sums, counts, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total

"""The micro-batches of one iteration, handed to the stages that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megacore.data import Batch
from megacore.errors import DataError
from megacore.models.gpt import GPTModel

Cut = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Microbatch:
    """One micro-batch of this process.

    Attributes:
        batch: On the device; with context parallelism this process's part of the sequences.
        tokens: How many tokens of the whole sequences count.
    """

    batch: Batch
    tokens: float


class Feed:
    """The micro-batches of one pass by number: read when first asked for, kept for all stages.

    Args:
        source: Where the next micro-batches come from.
        device: Where they go.
        num_uses: Stages of this process, each of which asks for every micro-batch once.
        cut: Takes this process's part of the sequences; None: all of them.
    """

    def __init__(
        self,
        source: Iterator[Batch],
        *,
        device: torch.device,
        num_uses: int = 1,
        cut: Cut | None = None,
    ) -> None:
        self._source = source
        self._device = device
        self._num_uses = num_uses
        self._cut = cut
        self._kept: dict[int, tuple[Microbatch, int]] = {}
        self._token_counts: list[float] = []

    @property
    def num_read(self) -> int:
        """Micro-batches read so far."""
        return len(self._token_counts)

    @property
    def num_tokens(self) -> float:
        """Tokens that count in all micro-batches read so far."""
        return sum(self._token_counts)

    def take(self, index: int) -> Microbatch:
        """Micro-batch number `index`, for one of its uses.

        Raises:
            DataError: There are not that many.
        """
        while len(self._token_counts) <= index:
            self._read()
        microbatch, uses = self._kept.pop(index)
        if uses > 1:
            self._kept[index] = (microbatch, uses - 1)
        return microbatch

    def _read(self) -> None:
        microbatch = next_microbatch(self._source, self._device, self._cut)
        self._kept[len(self._token_counts)] = (microbatch, self._num_uses)
        self._token_counts.append(microbatch.tokens)


def next_microbatch(
    source: Iterator[Batch], device: torch.device, cut: Cut | None = None
) -> Microbatch:
    """The next micro-batch, on the device.

    The tokens are counted, and document lengths stay, on the host, so that nothing waits for the
    device.

    Raises:
        DataError: There is none left.
    """
    try:
        batch = next(source)
    except StopIteration:
        raise DataError(
            "the dataset has no sequences left for another micro-batch: give more data, fewer "
            "iterations, or --dataloader-type cyclic"
        ) from None
    tokens = float(batch.loss_mask.sum(dtype=torch.float64))
    if cut is not None:
        batch = cut(batch)
    if device.type == "cpu":
        return Microbatch(batch, tokens)
    moved = replace(
        batch,
        tokens=batch.tokens.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        loss_mask=batch.loss_mask.to(device, non_blocking=True),
        position_ids=batch.position_ids.to(device, non_blocking=True),
    )
    return Microbatch(moved, tokens)


def token_loss_sum(model: GPTModel, batch: Batch, hidden: Tensor | None = None) -> Tensor:
    """Sum of the losses of the tokens that count: [] in the dtype of the losses.

    A part of a model that does not end with the output layer gives its hidden states instead.

    Args:
        model: A model or the part of one.
        batch: Tokens.
        hidden: Output of the part before, for one that does not begin with the embedding.
    """
    output: Tensor = model(
        batch.tokens,
        batch.position_ids,
        labels=batch.labels,
        cu_seqlens=batch.cu_seqlens,
        hidden=hidden,
    )
    if model.output_layer is None:
        return output
    return (output * batch.loss_mask).sum()

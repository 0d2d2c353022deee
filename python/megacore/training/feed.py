"""The micro-batches of one iteration, handed to the stages that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megacore.errors import DataError
from megacore.training.family import Family

Cut = Callable[[Any], Any]


@dataclass(frozen=True)
class Microbatch:
    """One micro-batch of this process.

    Attributes:
        batch: On the device; with context parallelism this process's part of the sequences.
        counts: Of how many things of the whole sequences each loss is a sum.
    """

    batch: Any
    counts: tuple[float, ...]


class Feed:
    """The micro-batches of one pass by number: read when first asked for, kept for all stages.

    Args:
        source: Where the next micro-batches come from.
        family: Knows what is in them.
        device: Where they go.
        num_uses: Stages of this process, each of which asks for every micro-batch once.
        cut: Takes this process's part of the sequences; None: all of them.
    """

    def __init__(
        self,
        source: Iterator[Any],
        *,
        family: Family[Any],
        device: torch.device,
        num_uses: int = 1,
        cut: Cut | None = None,
    ) -> None:
        self._source = source
        self._family = family
        self._device = device
        self._num_uses = num_uses
        self._cut = cut
        self._kept: dict[int, tuple[Microbatch, int]] = {}
        self._counts: list[tuple[float, ...]] = []

    @property
    def num_read(self) -> int:
        """Micro-batches read so far."""
        return len(self._counts)

    @property
    def counts(self) -> list[float]:
        """Of how many things each loss is a sum, in all micro-batches read so far."""
        zeros = (0.0,) * len(self._family.loss_names)
        return [sum(column) for column in zip(zeros, *self._counts, strict=True)]

    def take(self, index: int) -> Microbatch:
        """Micro-batch number `index`, for one of its uses.

        Raises:
            DataError: There are not that many.
        """
        while len(self._counts) <= index:
            self._read()
        microbatch, uses = self._kept.pop(index)
        if uses > 1:
            self._kept[index] = (microbatch, uses - 1)
        return microbatch

    def _read(self) -> None:
        microbatch = next_microbatch(self._source, self._family, self._device, self._cut)
        self._kept[len(self._counts)] = (microbatch, self._num_uses)
        self._counts.append(microbatch.counts)


def next_microbatch(
    source: Iterator[Any], family: Family[Any], device: torch.device, cut: Cut | None = None
) -> Microbatch:
    """The next micro-batch, on the device.

    What counts is counted, and document lengths stay, on the host, so that nothing waits for the
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
    counts = family.counts(batch)
    if cut is not None:
        batch = cut(batch)
    return Microbatch(batch if device.type == "cpu" else family.to_device(batch, device), counts)

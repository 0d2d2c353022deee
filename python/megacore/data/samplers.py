"""In which order the samples of a dataset are used, and by which data-parallel rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacore.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How samples are dealt to data-parallel ranks.

    Attributes:
        micro_batch_size: Samples of one micro-batch on one rank.
        rank: Data-parallel rank.
        size: Number of data-parallel ranks.
    """

    micro_batch_size: int
    rank: int = 0
    size: int = 1

    @property
    def block(self) -> int:
        """Samples that all ranks take together for one micro-batch each."""
        return self.micro_batch_size * self.size


def sequential(total: int, *, consumed: int, sharding: Sharding) -> Iterator[NDArray[np.int64]]:
    """Sample numbers of this rank's micro-batches, in one pass; a partial last block is dropped.

    Args:
        total: Samples of the dataset.
        consumed: Samples that all ranks have used before.
        sharding: Which of them this rank takes.
    """
    micro = sharding.micro_batch_size
    for start in range(consumed, total - sharding.block + 1, sharding.block):
        first = start + sharding.rank * micro
        yield np.arange(first, first + micro, dtype=np.int64)


def cyclic(
    total: int, *, consumed: int, sharding: Sharding, own_bucket: bool, name: str
) -> Iterator[NDArray[np.int64]]:
    """Sample numbers of this rank's micro-batches, in epochs without end, each shuffled anew.

    Args:
        total: Samples of the dataset.
        consumed: Samples that all ranks have used before, over all epochs.
        sharding: Which of them this rank takes.
        own_bucket: Each rank shuffles a range of its own; else all share one order.
        name: The dataset, for messages.

    Raises:
        DataError: The dataset has less than one block, or `consumed` is not at a block.
    """
    active = total - total % sharding.block
    if active == 0:
        raise DataError(
            f"{name} has {total} samples, less than one micro-batch on every rank "
            f"({sharding.micro_batch_size} x {sharding.size})"
        )
    if consumed % active % sharding.block:
        raise DataError(
            f"cannot continue a cyclic pass over {name} at sample {consumed}: expected a multiple "
            f"of {sharding.block} (--micro-batch-size x data-parallel size) within the epoch of "
            f"{active} samples"
        )
    micro = sharding.micro_batch_size
    while True:
        epoch, offset = divmod(consumed, active)
        order = _epoch_order(total, epoch=epoch, sharding=sharding, own_bucket=own_bucket)
        if own_bucket:
            mine = order[offset // sharding.size :]
        else:
            mine = order[offset:active][sharding.rank :: sharding.size]
        for start in range(0, len(mine) - micro + 1, micro):
            yield mine[start : start + micro]
        consumed = (epoch + 1) * active


def _epoch_order(
    total: int, *, epoch: int, sharding: Sharding, own_bucket: bool
) -> NDArray[np.int64]:
    import torch

    generator = torch.Generator()
    generator.manual_seed(epoch)
    micro = sharding.micro_batch_size
    if own_bucket:
        bucket = (total // sharding.block) * micro
        order = torch.randperm(bucket, generator=generator) + sharding.rank * bucket
    else:
        order = torch.randperm((total // micro) * micro, generator=generator)
    return order.numpy()

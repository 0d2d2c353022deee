"""Micro-batches: gathered in C++ by a few threads, in a fixed order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore.data.chat.dataset import PackedDataset
from megacore.data.config import DataConfig
from megacore.data.datasets import Dataset
from megacore.data.gpt_dataset import finish_batch
from megacore.data.samplers import Sharding, cyclic, sequential

AnyBatch = TypeVar("AnyBatch")

# Micro-batches under way per thread: one being made, one waiting.
_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One micro-batch of b sequences of S tokens.

    Attributes:
        tokens: int64 [b, S].
        labels: int64 [b, S], the tokens that follow.
        loss_mask: float32 [b, S], 1 where the loss counts.
        position_ids: int64 [b, S].
        cu_seqlens: int32 [n + 1] bounds of the documents in the b * S flattened tokens, which
            attention does not cross; None when a sequence is one document.
        max_seqlen: Tokens of the longest of them, None without bounds.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None
    max_seqlen: int | None


class Sized(Protocol):
    """A dataset as a loader knows it."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def __len__(self) -> int:
        """Number of samples."""


# Gathers the micro-batch of some samples [b] of a dataset.
MakeBatch = Callable[[Any, NDArray[np.int64]], AnyBatch]


def build_loader(
    dataset: Sized,
    *,
    make: MakeBatch[AnyBatch],
    data: DataConfig,
    micro_batch_size: int,
    consumed_samples: int,
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
) -> Iterator[AnyBatch]:
    """Micro-batches of one data-parallel rank, from where the run stands.

    The order does not depend on the number of threads, nor on where a run was interrupted: a cyclic
    pass seeds every epoch with its number. No global random state is touched.

    Args:
        dataset: Samples.
        make: Makes a micro-batch; called from several threads.
        data: Resolved settings: kind of pass, threads.
        micro_batch_size: b.
        consumed_samples: Samples that all ranks have used before.
        data_parallel_rank: This rank.
        data_parallel_size: Number of ranks.

    Raises:
        DataError: On the first micro-batch or later: an id beyond the vocabulary, a damaged file.
    """
    sharding = Sharding(
        micro_batch_size=micro_batch_size, rank=data_parallel_rank, size=data_parallel_size
    )
    if data.dataloader_type == "cyclic":
        order = cyclic(
            len(dataset),
            consumed=consumed_samples,
            sharding=sharding,
            own_bucket=data.data_sharding,
            name=dataset.name,
        )
    else:
        order = sequential(len(dataset), consumed=consumed_samples, sharding=sharding)
    if data.num_workers == 0:
        return (make(dataset, samples) for samples in order)
    return _prefetched(dataset, order, make, threads=data.num_workers)


def _prefetched(
    dataset: Sized,
    order: Iterator[NDArray[np.int64]],
    make: MakeBatch[AnyBatch],
    *,
    threads: int,
) -> Iterator[AnyBatch]:
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="megacore-data")
    try:
        pending: deque[Future[AnyBatch]] = deque()

        def submit(count: int) -> None:
            for samples in islice(order, count):
                pending.append(pool.submit(make, dataset, samples))

        submit(_AHEAD * threads)
        while pending:
            batch = pending.popleft().result()
            submit(1)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_batch(
    dataset: Dataset | PackedDataset, samples: NDArray[np.int64], *, vocab_size: int
) -> Batch:
    """The micro-batch of some samples.

    Args:
        dataset: Where they are.
        samples: int64 [b].
        vocab_size: Every token id must be smaller.

    Raises:
        DataError: An id is not in the vocabulary, or the file is damaged.
    """
    shape = (len(samples), dataset.sequence_length)
    pin = torch.cuda.is_available()
    tokens = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
    labels = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
    loss_mask = torch.empty(shape, dtype=torch.float32, pin_memory=pin)
    position_ids = torch.empty(shape, dtype=torch.int64, pin_memory=pin)
    token_array, label_array = tokens.numpy(), labels.numpy()
    bounds: NDArray[np.int32] | None
    if isinstance(dataset, PackedDataset):
        bounds = dataset.fill_rows(
            samples,
            vocab_size=vocab_size,
            tokens=token_array,
            labels=label_array,
            loss_mask=loss_mask.numpy(),
            position_ids=position_ids.numpy(),
        )
    else:
        dataset.gather(
            samples,
            np.arange(len(samples), dtype=np.int64),
            vocab_size=vocab_size,
            tokens=token_array,
            labels=label_array,
        )
        bounds = finish_batch(
            dataset.rules, token_array, label_array, loss_mask.numpy(), position_ids.numpy()
        )[2]
    cu_seqlens = max_seqlen = None
    if bounds is not None:
        cu_seqlens = torch.from_numpy(bounds)
        max_seqlen = int(np.diff(bounds).max())
    return Batch(tokens, labels, loss_mask, position_ids, cu_seqlens, max_seqlen)

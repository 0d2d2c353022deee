"""Gradients and parameters of which each process keeps a part, and has the whole while it works.

The gradients of a bucket are summed into a buffer that exists from the first of them to the last;
then they are reduced, each process adds its part to the part that it keeps, and the buffer goes.
The parameters of a bucket of layers are gathered before the layers compute, and go after.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(2020), stages 2 and 3; Zhao et al., "PyTorch FSDP" (2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from megacore.parallel.data import DataGroups, GradientBucket, ParameterBucket
from megacore.parallel.groups import DONE, Group, Work


class SharedGradients(GradientBucket, Protocol):
    """A bucket whose `grad` is there while sums are open; `own_grad` is kept apart from it."""

    @property
    def has_open_sums(self) -> bool:
        """Whether this process has sums that were not reduced."""

    def add_gradient(self, param: nn.Parameter) -> None:
        """Moves `param.grad` into the sums, which are opened if they are not."""

    def close_sums(self) -> None:
        """Frees the memory of the sums."""


class SharedParameters(ParameterBucket, Protocol):
    """A bucket whose `model` has memory only while its parameters are here."""

    @property
    def is_layers(self) -> bool:
        """Whether the parameters are released after each use."""

    @property
    def is_here(self) -> bool:
        """Whether `model` has memory."""

    def restore_model(self) -> None:
        """Gives `model` memory, and the own part its values."""

    def release_model(self) -> None:
        """Frees the memory of `model`."""


class GradientScatter:
    """Reduces the gradients of every micro-batch, bucket after bucket, during backward.

    Has the methods of `data.GradientSync`. All processes must use the same parameters in a
    micro-batch.

    Args:
        buckets: In the order in which backward completes them.
        data: Who takes part.
        average: Divide by the number of processes.
        average_in_collective: Let the reduction divide, instead of before it.
        overlap: Let backward go on while a bucket is reduced.
        shards: Told when a bucket is complete, and its parameters are not needed any more.
    """

    def __init__(
        self,
        buckets: Sequence[SharedGradients],
        *,
        data: DataGroups,
        average: bool,
        average_in_collective: bool,
        overlap: bool,
        shards: ParameterShards | None = None,
    ) -> None:
        self._buckets = list(buckets)
        self._data = data
        self._scale = 1.0 / data.size if average and not average_in_collective else 1.0
        self._op = "avg" if average and average_in_collective else "sum"
        self._most_pending = 1 if overlap else 0
        self._shards = shards
        self._of_param = {id(p): b for b in self._buckets for p in b.parameters}
        self._missing: dict[int, set[int]] = {}
        self._pending: deque[tuple[SharedGradients, Tensor, Work]] = deque()
        self.finished = False
        self.reset()

    def reset(self) -> None:
        """Forgets the last iteration; call it before the next one's first gradient."""
        while self._pending:
            self._complete_first()
        for bucket in self._buckets:
            if bucket.has_open_sums:
                bucket.close_sums()
            self._expect(bucket)
        self.finished = False

    def arm(self, chunk_idx: int) -> None:
        """Nothing changes with the last micro-batch: each one is reduced."""

    @torch.no_grad()
    def added(self, param: nn.Parameter) -> None:
        """Takes the gradient that autograd made, and reduces its bucket if it was the last."""
        bucket = self._of_param[id(param)]
        while self._is_pending(bucket):
            self._complete_first()
        bucket.add_gradient(param)
        self.ready(param)

    def ready(self, param: nn.Parameter) -> None:
        """Notes that there is no gradient of a parameter to come in this micro-batch."""
        bucket = self._of_param.get(id(param))
        if bucket is None or not bucket.has_open_sums or self._is_pending(bucket):
            return
        missing = self._missing[id(bucket)]
        missing.discard(id(param))
        if not missing:
            self._reduce(bucket)

    def finish(self) -> None:
        """Reduces what is not reduced yet and waits for all of it."""
        if self.finished:
            return
        self.finished = True
        for bucket in self._buckets:
            if bucket.has_open_sums and not self._is_pending(bucket):
                self._reduce(bucket)
        while self._pending:
            self._complete_first()
        replica = self._data.replica
        works = [replica.all_reduce(b.own_grad, self._op, async_op=True) for b in self._buckets]
        for work in works:
            work.wait()

    def _is_pending(self, bucket: SharedGradients) -> bool:
        return any(other is bucket for other, _, _ in self._pending)

    def _expect(self, bucket: SharedGradients) -> None:
        self._missing[id(bucket)] = {id(p) for p in bucket.parameters}

    @torch.no_grad()
    def _reduce(self, bucket: SharedGradients) -> None:
        self._expect(bucket)
        if self._shards is not None:
            self._shards.done_with(bucket)
        if self._scale != 1.0:
            bucket.grad.mul_(self._scale)
        part = torch.empty_like(bucket.own_grad)
        work = self._data.shard.reduce_scatter(part, bucket.grad, self._op, async_op=True)
        self._pending.append((bucket, part, work))
        while len(self._pending) > self._most_pending:
            self._complete_first()

    @torch.no_grad()
    def _complete_first(self) -> None:
        bucket, part, work = self._pending.popleft()
        work.wait()
        bucket.own_grad.add_(part)
        bucket.close_sums()


class ParameterShards:
    """Gathers parameters for as long as they are used.

    Has the methods of `data.ParameterSync`.

    Args:
        chunks: The buckets of each chunk of the model, in the order in which forward uses them.
        group: Members own a part of each bucket.
        prefetch: Gather the bucket that is needed next while one is used.
    """

    def __init__(
        self, chunks: Sequence[Sequence[SharedParameters]], group: Group, *, prefetch: bool
    ) -> None:
        self._chunks = [list(chunk) for chunk in chunks]
        self._place = {
            id(bucket): (chunk, index)
            for chunk in self._chunks
            for index, bucket in enumerate(chunk)
        }
        self._group = group
        self._prefetch = prefetch
        self._works: dict[int, Work] = {}

    def use(self, bucket: SharedParameters, *, backward: bool) -> None:
        """Returns when the parameters of a bucket are here.

        Args:
            bucket: What is needed.
            backward: The bucket before it will be needed next, not the one after it.
        """
        self._start(bucket)
        self._wait(bucket)
        if not self._prefetch:
            return
        chunk, index = self._place[id(bucket)]
        index += -1 if backward else 1
        if 0 <= index < len(chunk):
            self._start(chunk[index])

    def release(self, bucket: SharedParameters) -> None:
        """Lets go of the parameters of a bucket of layers."""
        if bucket.is_layers and bucket.is_here:
            self._wait(bucket)
            bucket.release_model()

    def done_with(self, bucket: object) -> None:
        """Lets go of a bucket whose gradients are complete."""
        chunk, index = self._place[id(bucket)]
        self.release(chunk[index])

    def settle(self) -> None:
        """Waits for what is under way."""
        for chunk in self._chunks:
            for bucket in chunk:
                self._wait(bucket)

    def start(self) -> None:
        """The parameters were updated: what is here is old."""
        self.settle()
        for chunk in self._chunks:
            for bucket in chunk:
                if bucket.is_here:
                    bucket.release_model()

    def finish(self) -> None:
        """Returns when all parameters are here."""
        for chunk in self._chunks:
            for bucket in chunk:
                self._start(bucket)
        self.settle()

    @torch.no_grad()
    def _start(self, bucket: SharedParameters) -> None:
        if bucket.is_here:
            return
        bucket.restore_model()
        self._works[id(bucket)] = self._group.all_gather(
            bucket.model, bucket.own_model, async_op=True
        )

    def _wait(self, bucket: SharedParameters) -> None:
        self._works.pop(id(bucket), DONE).wait()

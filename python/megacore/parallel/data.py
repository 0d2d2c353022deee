"""Data parallelism: who has equal parameters, and how their gradients are summed.

The processes with equal parameters (data and context parallel ones) are seen as a grid: the members
of a shard group each own a part of every bucket, the members of a replica group own equal parts.
Without a sharded optimizer shard groups have one member; with one that shards over all there are
no replicas; in between lies sharding inside a group of near processes (a node), as in Zhang et
al., "MiCS" (2022).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import DONE, Group, ParallelGroups, Work

# Default size of buckets: large enough for full bandwidth, and growing with the number of
# processes, because each of them gets an ever smaller part of a bucket.
BUCKET_ELEMENTS = 40_000_000
BUCKET_ELEMENTS_PER_PROCESS = 1_000_000


@dataclass(frozen=True)
class DataGroups:
    """The processes with equal parameters.

    Attributes:
        shard: Those that own different parts of each bucket.
        replica: Those that own the same parts.
    """

    shard: Group
    replica: Group

    @property
    def size(self) -> int:
        """Number of processes with equal parameters."""
        return self.shard.size * self.replica.size


def data_groups(groups: ParallelGroups, parallel: ParallelConfig) -> DataGroups:
    """The processes with equal parameters, as sharding arranges them.

    Args:
        groups: The groups of this process.
        parallel: Says what is sharded.
    """
    if not parallel.shards_optimizer:
        return DataGroups(Group("shard", (groups.rank,)), groups.dp_cp)
    if parallel.num_distributed_optimizer_instances > 1:
        return DataGroups(groups.shard, groups.replica)
    return DataGroups(groups.dp_cp, Group("replica", (groups.rank,)))


def default_bucket_size(num_processes: int) -> int:
    """Elements of a bucket when `--ddp-bucket-size` is not given."""
    return max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_PROCESS * num_processes)


class GradientBucket(Protocol):
    """What is reduced at once."""

    @property
    def grad(self) -> Tensor:
        """[n] sums of gradients of this process."""

    @property
    def own_grad(self) -> Tensor:
        """[n / d] view of the part that this process owns."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Whose gradients they are."""


class ParameterBucket(Protocol):
    """What is gathered at once."""

    @property
    def model(self) -> Tensor:
        """[n] parameters."""

    @property
    def own_model(self) -> Tensor:
        """[n / d] view of the part that this process owns."""


@dataclass(eq=False)
class _Reduction:
    """A bucket on its way."""

    bucket: GradientBucket
    chunk_idx: int | None
    missing: set[int]
    work: Work | None = None


class GradientSync:
    """Reduces gradients, bucket after bucket.

    All processes must start the same reductions in the same order. So a bucket waits for those
    before it even when it is complete: a parameter that one process did not use delays, but never
    exchanges, reductions.

    Args:
        chunks: The buckets of each chunk of the model, in the order in which backward completes
            them.
        late: Buckets to which several chunks add; they are reduced last.
        data: Who takes part.
        average: Divide by the number of processes.
        average_in_collective: Let the reduction divide, instead of before it.
        overlap: Start a reduction when the last gradient of its bucket is there.
    """

    def __init__(
        self,
        chunks: Sequence[Sequence[GradientBucket]],
        *,
        late: Sequence[GradientBucket] = (),
        data: DataGroups,
        average: bool,
        average_in_collective: bool,
        overlap: bool,
    ) -> None:
        self.overlap = overlap and data.size > 1
        self._data = data
        self._scale = 1.0 / data.size if average and not average_in_collective else 1.0
        self._op = "avg" if average and average_in_collective else "sum"
        self._chunks = [[_Reduction(b, i, set()) for b in chunk] for i, chunk in enumerate(chunks)]
        self._late = [_Reduction(bucket, None, set()) for bucket in late]
        self._all = [r for chunk in self._chunks for r in chunk] + self._late
        self._of_param = {id(p): r for r in self._all for p in r.bucket.parameters}
        self.reset()

    def reset(self) -> None:
        """Forgets the last iteration; call it before the next one's first gradient."""
        for reduction in self._all:
            reduction.missing = {id(p) for p in reduction.bucket.parameters}
            reduction.work = None
        self._armed: set[int] = set()
        self._queue: deque[_Reduction] = deque()
        self.finished = False

    def arm(self, chunk_idx: int) -> None:
        """From now on the gradients of a chunk are those of its last micro-batch."""
        if not self.overlap or chunk_idx in self._armed:
            return
        self._armed.add(chunk_idx)
        self._queue.extend(self._chunks[chunk_idx])

    def added(self, param: nn.Parameter) -> None:
        """Notes that autograd added a gradient to the sum of a parameter.

        Raises:
            RuntimeError: Its bucket is being reduced already.
        """
        if self._of_param[id(param)].work is not None:
            raise RuntimeError(
                "a gradient was added after the reduction of its bucket had started: the last "
                "micro-batch of a chunk must be announced before its backward, and be the last"
            )
        self.ready(param)

    def ready(self, param: nn.Parameter) -> None:
        """Notes that the last gradient of a parameter was added, if its chunk is armed."""
        reduction = self._of_param.get(id(param))
        if reduction is None or reduction.chunk_idx not in self._armed:
            return
        reduction.missing.discard(id(param))
        while self._queue and not self._queue[0].missing:
            self._start(self._queue.popleft())

    def finish(self) -> None:
        """Reduces what is not reduced yet and waits for all of it."""
        if self.finished:
            return
        self.finished = True
        # The armed ones first, in the order of arming, like the reductions that are under way.
        for reduction in (*self._queue, *self._all):
            if reduction.work is None:
                self._start(reduction)
        self._queue.clear()
        for reduction in self._all:
            if reduction.work is not None:
                reduction.work.wait()
        if self._data.shard.size > 1 and self._data.replica.size > 1:
            works = [
                self._data.replica.all_reduce(r.bucket.own_grad, self._op, async_op=True)
                for r in self._all
            ]
            for work in works:
                work.wait()

    def _start(self, reduction: _Reduction) -> None:
        bucket, data = reduction.bucket, self._data
        if self._scale != 1.0:
            bucket.grad.mul_(self._scale)
        if data.shard.size > 1:
            reduction.work = data.shard.reduce_scatter(
                bucket.own_grad, bucket.grad, self._op, async_op=True
            )
        elif data.replica.size > 1:
            reduction.work = data.replica.all_reduce(bucket.grad, self._op, async_op=True)
        else:
            reduction.work = DONE


class ParameterSync:
    """Gathers updated parameters, bucket after bucket.

    Args:
        buckets: In the order in which forward uses them.
        group: Members own a part of each bucket.
    """

    def __init__(self, buckets: Sequence[ParameterBucket], group: Group) -> None:
        self._buckets = list(buckets) if group.size > 1 else []
        self._group = group
        self._works: dict[int, Work] = {}

    @property
    def pending(self) -> bool:
        """Whether a bucket is still being gathered."""
        return bool(self._works)

    def start(self) -> None:
        """Starts to gather all buckets."""
        self.finish()
        for bucket in self._buckets:
            self._works[id(bucket)] = self._group.all_gather(
                bucket.model, bucket.own_model, async_op=True
            )

    def settle(self) -> None:
        """Waits for what is under way."""
        self.finish()

    def wait(self, bucket: ParameterBucket) -> None:
        """Returns when the parameters of a bucket can be used."""
        work = self._works.pop(id(bucket), None)
        if work is not None:
            work.wait()

    def finish(self) -> None:
        """Returns when all parameters can be used."""
        for bucket in self._buckets:
            self.wait(bucket)

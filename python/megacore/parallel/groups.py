"""Groups of processes: the only place that talks to torch.distributed.

A `Group` is passed explicitly to whatever communicates; there is no global registry. A group of
one process does nothing and needs no torch.distributed, so code with groups runs unchanged in one
process.

The methods of the ProcessGroup object are called directly: the functions of torch.distributed
look the group up, validate and build option objects again at every call. Newer versions of
torch renamed some of the methods; `_method` takes the name that is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor
from torch.distributed import (
    AllreduceOptions,
    BarrierOptions,
    BroadcastOptions,
    ProcessGroup,
    ReduceOp,
    ReduceScatterOptions,
)

from megacore.errors import CommunicationError

REDUCTIONS = {
    "sum": ReduceOp(ReduceOp.SUM),
    "max": ReduceOp(ReduceOp.MAX),
    "min": ReduceOp(ReduceOp.MIN),
    "avg": ReduceOp(ReduceOp.AVG),
}


def _method(*names: str) -> str:
    return next(name for name in names if hasattr(ProcessGroup, name))


_ALL_GATHER = _method("all_gather_single", "_allgather_base")
_REDUCE_SCATTER = _method("reduce_scatter_single", "_reduce_scatter_base")
_ALL_TO_ALL = _method("all_to_all_single", "alltoall_base")


@dataclass(slots=True)
class StepRecord:
    """The training step that is being executed, which errors name; the trainer sets it.

    Attributes:
        step: Number of the step, or None before the first one.
    """

    step: int | None = None


class Checker(Protocol):
    """What compares the calls of all ranks of a group before each collective."""

    def check(self, operation: str, shape: Sequence[int], dtype: str) -> None:
        """Returns when all ranks are about to call the same; raises CommunicationError if not."""

    def check_transfer(
        self, *, sender: int, receiver: int, tag: int, shape: Sequence[int], dtype: str
    ) -> None:
        """Raises CommunicationError where the two sides of a message are known to differ."""


class Work:
    """An operation that was started; `wait` before its tensors are used again."""

    __slots__ = ("_group", "_handle", "_operation", "_tensor")

    def __init__(
        self,
        group: Group | None = None,
        handle: Any = None,
        operation: str = "",
        tensor: Tensor | None = None,
    ) -> None:
        self._group = group
        self._handle = handle
        self._operation = operation
        # Also keeps the memory alive until the operation is over.
        self._tensor = tensor

    def wait(self) -> None:
        """Blocks until the result is there (on CUDA: makes the current stream wait for it).

        Raises:
            CommunicationError: The operation failed or took longer than the timeout.
        """
        if self._handle is None or self._group is None:
            return
        try:
            self._handle.wait()
        except RuntimeError as error:
            raise self._group.failure(self._operation, self._tensor, error) from error
        self._handle = self._tensor = None

    def is_completed(self) -> bool:
        """Whether `wait` would return at once (with the result or with the error)."""
        return self._handle is None or bool(self._handle.is_completed())


DONE = Work()


@dataclass(frozen=True, eq=False)
class Group:
    """Some processes of a run that communicate.

    Tensors must be contiguous; dtypes are those that the backend knows (Gloo: float16, bfloat16,
    float32, float64 and integers). Every method that communicates raises CommunicationError when
    it fails. With `async_op` it returns at once, and the `Work` has to be waited for; without, the
    `Work` is done already.

    Attributes:
        name: How errors call it, such as "tp".
        ranks: Ranks of its members in the whole run, in order.
        rank: Index of this process in `ranks`.
        process_group: Of torch.distributed; None for a group of one.
        record: Where the current step is read from, for errors.
        checker: Compares the calls of all members first (`--check-collectives`), or None.
    """

    name: str
    ranks: tuple[int, ...] = (0,)
    rank: int = 0
    process_group: ProcessGroup | None = None
    record: StepRecord = field(default_factory=StepRecord)
    checker: Checker | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.ranks))

    @property
    def global_rank(self) -> int:
        """Rank of this process in the whole run."""
        return self.ranks[self.rank]

    @property
    def is_first(self) -> bool:
        """Whether this process is the first member."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this process is the last member."""
        return self.rank == self.size - 1

    def all_reduce(self, x: Tensor, op: str = "sum", async_op: bool = False) -> Work:
        """Replaces `x`, any shape, by its reduction over the members.

        Args:
            x: Reduced in place; the same shape and dtype everywhere.
            op: "sum", "max", "min" or "avg" ("avg": floating point only).
            async_op: Return before it is done.
        """
        if self.size == 1:
            return DONE
        options = AllreduceOptions()
        options.reduceOp = REDUCTIONS[op]
        return self._start("all_reduce", x, async_op, "allreduce", [x], options)

    def all_gather(self, out: Tensor, x: Tensor, async_op: bool = False) -> Work:
        """Writes the `x` of every member, [n, ...], one after the other into `out`, [size*n, ...].

        Args:
            out: Result. `x` may be this member's own part of it.
            x: The same shape and dtype everywhere.
            async_op: Return before it is done.
        """
        if self.size == 1:
            return self._copy(out, x)
        return self._start("all_gather", x, async_op, _ALL_GATHER, out, x)

    def reduce_scatter(
        self, out: Tensor, x: Tensor, op: str = "sum", async_op: bool = False
    ) -> Work:
        """Writes part number `rank` of the reduction of `x`, [size*n, ...], into `out`, [n, ...].

        Args:
            out: Result. It may be this member's own part of `x`.
            x: The same shape and dtype everywhere.
            op: "sum", "max", "min" or "avg".
            async_op: Return before it is done.
        """
        if self.size == 1:
            return self._copy(out, x)
        options = ReduceScatterOptions()
        options.reduceOp = REDUCTIONS[op]
        return self._start("reduce_scatter", x, async_op, _REDUCE_SCATTER, out, x, options)

    def all_to_all(
        self,
        out: Tensor,
        x: Tensor,
        out_splits: Sequence[int] | None = None,
        in_splits: Sequence[int] | None = None,
        async_op: bool = False,
    ) -> Work:
        """Sends part i of `x` (along dimension 0) to member i; part i of `out` comes from member i.

        Args:
            out: Result, [sum of out_splits, ...].
            x: [sum of in_splits, ...].
            out_splits: Rows that come from each member; equal parts when not given.
            in_splits: Rows that go to each member; equal parts when not given.
            async_op: Return before it is done.
        """
        if self.size == 1:
            return self._copy(out, x)
        splits = (list(out_splits or ()), list(in_splits or ()))
        return self._start("all_to_all", x, async_op, _ALL_TO_ALL, out, x, *splits)

    def broadcast(self, x: Tensor, src: int, async_op: bool = False) -> Work:
        """Replaces `x` by that of member `src`.

        Args:
            x: The same shape and dtype everywhere.
            src: Index in this group.
            async_op: Return before it is done.
        """
        if self.size == 1:
            return DONE
        options = BroadcastOptions()
        options.rootRank = src
        options.rootTensor = 0
        return self._start("broadcast", x, async_op, "broadcast", [x], options)

    def send(self, x: Tensor, dst: int, tag: int = 0) -> Work:
        """Starts to send `x` to member `dst`; the `Work` has to be waited for.

        Args:
            x: Not to be changed before the end.
            dst: Index in this group.
            tag: Pairs the message with a `recv` of the same tag (NCCL pairs by order instead).
        """
        if self.checker is not None:
            self.checker.check_transfer(
                sender=self.rank, receiver=dst, tag=tag, shape=x.shape, dtype=dtype_name(x)
            )
        return self._transfer(f"send to rank {self.ranks[dst]}", x, "send", dst, tag)

    def recv(self, x: Tensor, src: int, tag: int = 0) -> Work:
        """Starts to receive into `x` from member `src`; the `Work` has to be waited for.

        Args:
            x: Shape and dtype are those of the tensor sent.
            src: Index in this group.
            tag: As for `send`.
        """
        if self.checker is not None:
            self.checker.check_transfer(
                sender=src, receiver=self.rank, tag=tag, shape=x.shape, dtype=dtype_name(x)
            )
        return self._transfer(f"recv from rank {self.ranks[src]}", x, "recv", src, tag)

    def barrier(self) -> None:
        """Returns when every member has called it."""
        if self.size > 1:
            self._start("barrier", None, False, "barrier", BarrierOptions())

    def failure(
        self, operation: str, tensor: Tensor | None, cause: BaseException
    ) -> CommunicationError:
        """The error of an operation of this group that failed.

        Args:
            operation: Its name.
            tensor: What it was called with, or None.
            cause: What the backend said.
        """
        return CommunicationError(
            rank=self.global_rank,
            operation=operation,
            group=self.name,
            ranks=self.ranks,
            shape=None if tensor is None else tuple(tensor.shape),
            dtype=None if tensor is None else dtype_name(tensor),
            step=self.record.step,
            cause=_reason(cause),
        )

    def _start(
        self, operation: str, tensor: Tensor | None, async_op: bool, method: str, *arguments: Any
    ) -> Work:
        if self.checker is not None:
            shape = () if tensor is None else tuple(tensor.shape)
            if operation == "all_to_all" and any(arguments[2:]):
                shape = shape[1:]  # each member sends another number of rows
            self.checker.check(operation, shape, "" if tensor is None else dtype_name(tensor))
        try:
            handle = getattr(self.process_group, method)(*arguments)
        except RuntimeError as error:
            raise self.failure(operation, tensor, error) from error
        work = Work(self, handle, operation, tensor)
        if not async_op:
            work.wait()
        return work

    def _transfer(self, operation: str, x: Tensor, method: str, peer: int, tag: int) -> Work:
        try:
            handle = getattr(self.process_group, method)([x], peer, tag)
        except RuntimeError as error:
            raise self.failure(operation, x, error) from error
        return Work(self, handle, operation, x)

    def _copy(self, out: Tensor, x: Tensor) -> Work:
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)
        return DONE


def _reason(cause: BaseException) -> str:
    """What the backend said, without its source position, its stack and its advice."""
    text = str(cause).partition("\nException raised")[0].partition(". This is typically")[0]
    return re.sub(r"^(\[[^\]]*\.\w+:\d+\] ?)+", "", text)


def dtype_name(tensor: Tensor) -> str:
    """Name of a tensor's dtype without "torch.", such as "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class ParallelGroups:
    """The groups that one process belongs to.

    Attributes:
        world: All processes.
        tp: Hold parts of the same layers of the same copy of the model.
        pp: Hold the stages of one copy of the model, in order.
        dp: Hold the same parameters and work on different samples.
        cp: Hold the same parameters and work on parts of the same sequences.
        dp_cp: dp and cp together: those whose gradients are summed.
        shard: The part of dp_cp that shares one sharded optimizer: all of it, unless there are
            several instances.
        replica: The members of dp_cp with the same place in each instance.
        ep: Hold different experts.
        model: tp and pp together: one copy of the parameters.
        tp_cp: tp and cp together.
        embedding: Hold the word embedding or the tied output layer; of size 1 where this
            process holds neither or the two are on one process.
        position_embedding: Hold the position embedding.
        record: The current step, which the trainer sets and errors name.
    """

    world: Group
    tp: Group
    pp: Group
    dp: Group
    cp: Group
    dp_cp: Group
    shard: Group
    replica: Group
    ep: Group
    model: Group
    tp_cp: Group
    embedding: Group
    position_embedding: Group
    record: StepRecord = field(default_factory=StepRecord)

    @property
    def rank(self) -> int:
        """Rank of this process in the whole run."""
        return self.world.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.world.size


GROUP_NAMES = tuple(f.name for f in fields(ParallelGroups) if f.name != "record")


def single_process_groups() -> ParallelGroups:
    """Groups of size 1 for every axis; needs no torch.distributed."""
    record = StepRecord()
    return ParallelGroups(
        **{name: Group(name, record=record) for name in GROUP_NAMES}, record=record
    )

"""Groups of processes that are not there: they count what would be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import PipelineEnds, group_ranks
from megacore.parallel.groups import DONE, Group, ParallelGroups, StepRecord, Work


@dataclass(frozen=True)
class Traffic:
    """What one process sends.

    Attributes:
        calls: (name of the group, operation) -> number of operations.
        sent_bytes: The same -> bytes that this process sends.
    """

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, group: str, operation: str, sent_bytes: float, calls: int = 1) -> None:
        """Counts an operation.

        Args:
            group: Name of the group.
            operation: Name of the operation.
            sent_bytes: Bytes that this process sends for all the calls.
            calls: How often it is called.
        """
        self.calls[group, operation] += calls
        self.sent_bytes[group, operation] += round(sent_bytes)

    def take(self) -> Traffic:
        """What was counted since the last call."""
        taken = Traffic(self.calls.copy(), self.sent_bytes.copy())
        self.calls.clear()
        self.sent_bytes.clear()
        return taken

    def add_all(self, other: Traffic, times: int = 1) -> None:
        """Counts the operations of another record, several times."""
        for key, calls in other.calls.items():
            self.calls[key] += times * calls
            self.sent_bytes[key] += times * other.sent_bytes[key]


@dataclass(frozen=True, eq=False)
class SimulatedGroup(Group):
    """A group whose other members do not exist.

    Operations check nothing, change nothing, and are counted. Bytes are those of the usual ring
    algorithms: of an all-reduce of b bytes among n processes each sends 2 b (n - 1) / n, of a
    gather or scatter the half of it.

    Attributes:
        traffic: Where operations are counted.
    """

    traffic: Traffic = field(default_factory=Traffic)

    def barrier(self) -> None:
        """Does nothing."""

    def _start(
        self, operation: str, tensor: Tensor | None, async_op: bool, method: str, *arguments: Any
    ) -> Work:
        if tensor is not None:
            sent = self._sent_bytes(operation, tensor, arguments)
            self.traffic.add(self.name, operation, sent)
        return DONE

    def _transfer(self, operation: str, x: Tensor, method: str, peer: int, tag: int) -> Work:
        if method == "send":
            self.traffic.add(self.name, "send", x.nbytes)
        return DONE

    def _sent_bytes(self, operation: str, x: Tensor, arguments: Sequence[Any]) -> float:
        share = (self.size - 1) / self.size
        if operation == "all_reduce":
            return 2 * share * x.nbytes
        if operation == "all_gather":
            return (self.size - 1) * x.nbytes
        if operation == "all_to_all" and arguments[-1]:
            rows = [count for peer, count in enumerate(arguments[-1]) if peer != self.rank]
            return sum(rows) * x.nbytes / max(1, x.shape[0])
        return share * x.nbytes


def simulated_groups(
    parallel: ParallelConfig, rank: int, *, traffic: Traffic, ends: PipelineEnds | None = None
) -> ParallelGroups:
    """The groups of one process of a run.

    Args:
        parallel: Degrees, order and number of processes.
        rank: Of the process.
        traffic: Where their operations are counted.
        ends: Where the pipeline begins and ends; by default as the named schedule puts it.
    """
    record = StepRecord()
    ranks = {"world": tuple(range(parallel.world_size)), **group_ranks(parallel, rank, ends)}
    groups = {
        name: SimulatedGroup(name, r, r.index(rank), record=record, traffic=traffic)
        for name, r in ranks.items()
    }
    return ParallelGroups(**groups, record=record)

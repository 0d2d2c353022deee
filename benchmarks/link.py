"""A simulated link and the clock of the one process that uses it.

The clock counts processor seconds of the process. Collectives move nothing and are over when a
link of the given speed would be done; all transfers go through it one after the other. What the
process waits for them is exposed, the rest hidden. Other work on the machine does not count, and
neither does the time to copy data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from megacore.parallel.groups import Group


@dataclass
class Link:
    """A link and the clock of its process.

    Attributes:
        bytes_per_second: Speed.
        waited: Seconds that the process has waited for transfers.
        carried: Seconds of transfers.
        free_at: When the last transfer is over.
    """

    bytes_per_second: float
    waited: float = 0.0
    carried: float = 0.0
    free_at: float = 0.0

    def now(self) -> float:
        return time.process_time() + self.waited

    def start(self, num_bytes: float, async_op: bool) -> LinkWork:
        seconds = num_bytes / self.bytes_per_second
        self.carried += seconds
        self.free_at = max(self.free_at, self.now()) + seconds
        work = LinkWork(self, self.free_at)
        if not async_op:
            work.wait()
        return work


@dataclass
class LinkWork:
    """A transfer that is over at a given time."""

    link: Link
    end: float

    def wait(self) -> None:
        self.link.waited += max(0.0, self.end - self.link.now())


@dataclass(frozen=True, eq=False)
class LinkGroup(Group):
    """A group whose collectives take time on a link and do nothing."""

    link: Link = field(default_factory=lambda: Link(1e9))

    def all_reduce(self, x: Tensor, op: str = "sum", async_op: bool = False) -> LinkWork:
        return self.link.start(2 * x.nbytes * (self.size - 1) / self.size, async_op)

    def all_gather(self, out: Tensor, x: Tensor, async_op: bool = False) -> LinkWork:
        return self.link.start(x.nbytes * (self.size - 1), async_op)

    def reduce_scatter(
        self, out: Tensor, x: Tensor, op: str = "sum", async_op: bool = False
    ) -> LinkWork:
        return self.link.start(out.nbytes * (self.size - 1), async_op)


def print_form(name: str, link: Link, step: Callable[[], None], repeats: int) -> None:
    """Measure a step and print its row: ms of the processor, of transfers, exposed; hidden part."""
    step()
    rows = []
    for _ in range(repeats):
        # Differences, and not a clock set to 0: transfers of the step before may be under way.
        before = (time.process_time(), link.carried, link.waited)
        step()
        after = (time.process_time(), link.carried, link.waited)
        rows.append([end - start for start, end in zip(before, after, strict=True)])
    busy, carried, waited = (statistics.median(c) * 1e3 for c in zip(*rows, strict=True))
    hidden = 100.0 * (1.0 - waited / carried)
    print(f"{name:45s} {busy:9.1f} {carried:9.1f} {waited:8.1f} {hidden:6.0f}%", flush=True)


def print_title(speed: float, num_processes: int) -> None:
    """Print what the rows of `print_form` say."""
    print(f"\nlink of {speed:g} GB/s, one of {num_processes} processes, ms")
    print(f"{'':45s} {'processor':>9s} {'transfers':>9s} {'exposed':>8s} {'hidden':>7s}")

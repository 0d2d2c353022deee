"""Named timers with levels, and the report that is printed beside the log line.

Level 0 timers run once in a while (set-up, save, evaluation), level 1 once per iteration, level 2
several times per iteration. A timer above the chosen level does nothing and reports nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from megacore.parallel.groups import Group
from megacore.training.agreement import gathered

NAME_WIDTH = 48

LEVEL_OF_TIMER: Mapping[str, int] = {
    "interval-time": 0,
    "model-and-optimizer-setup": 0,
    "train/valid/test-data-iterators-setup": 0,
    "load-checkpoint": 0,
    "save-checkpoint": 0,
    "eval-time": 0,
    "evaluate": 0,
    "forward-backward": 1,
    "optimizer": 1,
    "batch-generator": 2,
    "forward-compute": 2,
    "backward-compute": 2,
}
ITERATION_TIMERS = (
    "forward-backward",
    "forward-compute",
    "backward-compute",
    "batch-generator",
    "optimizer",
)


class Timer:
    """Seconds between `start` and `stop`, added up until `reset`."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._elapsed = 0.0
        self._started_at: float | None = None
        self.count = 0

    def start(self) -> None:
        """Begin; waits for the device so that earlier work is not counted.

        Raises:
            RuntimeError: The timer runs already.
        """
        if self._started_at is not None:
            raise RuntimeError("timer was started twice")
        self._synchronize()
        self._started_at = time.perf_counter()

    def stop(self) -> None:
        """End; waits for the device so that the work in between is counted.

        Raises:
            RuntimeError: The timer does not run.
        """
        if self._started_at is None:
            raise RuntimeError("timer was stopped before it was started")
        self._synchronize()
        self._elapsed += time.perf_counter() - self._started_at
        self._started_at = None
        self.count += 1

    def add(self, seconds: float, *, count: int) -> None:
        """Adds time that was measured elsewhere.

        Args:
            seconds: How much.
            count: How many times something was measured.
        """
        self._elapsed += seconds
        self.count += count

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._started_at is not None

    def elapsed(self, *, reset: bool = True) -> float:
        """Seconds counted so far, those since `start` included; keeps running if it ran."""
        running = self._started_at is not None
        if running:
            self.stop()
        seconds = self._elapsed
        if reset:
            self._elapsed, self.count = 0.0, 0
        if running:
            self.start()
        return seconds


class Timers:
    """All timers of a run.

    Args:
        level: Timers above this level do nothing.
        option: "max", "minmax" or "all": what `report` shows of the ranks.
        device: Work on a CUDA device is waited for.
        group: Processes whose times `report` shows.
    """

    def __init__(
        self, *, level: int, option: str, device: torch.device, group: Group | None = None
    ) -> None:
        self._level = level
        self._option = option
        self._device = device
        self._group = group or Group("world")
        self._timers: dict[str, Timer] = {}
        self._synchronize: Callable[[], None] = lambda: None
        if device.type == "cuda":
            self._synchronize = lambda: torch.cuda.synchronize(device)

    def is_on(self, name: str) -> bool:
        """Whether the level lets this timer run."""
        return LEVEL_OF_TIMER[name] <= self._level

    def __getitem__(self, name: str) -> Timer:
        if name not in self._timers:
            self._timers[name] = Timer(self._synchronize)
        return self._timers[name]

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count the time spent inside, when the level lets this timer run."""
        if not self.is_on(name):
            yield
            return
        timer = self[name]
        timer.start()
        try:
            yield
        finally:
            timer.stop()

    def milliseconds(
        self, names: Sequence[str], *, normalizer: float = 1.0, reset: bool = True
    ) -> dict[str, float]:
        """Milliseconds / normalizer of those timers of `names` that counted something here."""
        return {
            name: self._timers[name].elapsed(reset=reset) * 1000.0 / normalizer
            for name in names
            if name in self._timers and self._timers[name].count
        }

    def everywhere(
        self, names: Sequence[str], *, normalizer: float = 1.0, reset: bool = True
    ) -> dict[str, list[float]]:
        """Milliseconds / normalizer of every process whose timer counted something, by rank.

        All processes call it together.
        """
        names = [name for name in names if self.is_on(name)]
        if not names:
            return {}
        own = self.milliseconds(names, normalizer=normalizer, reset=reset)
        # No time is negative: this is a timer that counted nothing.
        row = [own.get(name, -1.0) for name in names]
        columns = zip(*gathered(row, self._group, self._device), strict=True)
        times = {
            n: [t for t in column if t >= 0.0] for n, column in zip(names, columns, strict=True)
        }
        return {name: found for name, found in times.items() if found}

    def report(
        self, names: Sequence[str], *, normalizer: float = 1.0, reset: bool = True
    ) -> str | None:
        """The report of all processes, or None when none of the timers counted anything.

        All processes call it together.
        """
        times = self.everywhere(names, normalizer=normalizer, reset=reset)
        return format_timers(times, self._option) if times else None


def format_timers(times: Mapping[str, Sequence[float]], option: str) -> str:
    """The timer report.

    Args:
        times: Timer -> milliseconds of every rank.
        option: "max", "minmax" or "all".
    """
    if option == "all":
        lines = ["times across ranks (ms):"]
        for name, values in times.items():
            lines.append(f"  {name}:")
            lines += [f"     rank {rank:2d}: {value:.2f}" for rank, value in enumerate(values)]
        return "\n".join(lines)
    lines = ["max time across ranks (ms):"]
    if option == "minmax":
        lines = ["(min, max) time across ranks (ms):"]
    for name, values in times.items():
        padded = f"{name} ".ljust(NAME_WIDTH, ".")
        if option == "minmax":
            lines.append(f"    {padded}: ({min(values):.2f}, {max(values):.2f})")
        else:
            lines.append(f"    {padded}: {max(values):.2f}")
    return "\n".join(lines)

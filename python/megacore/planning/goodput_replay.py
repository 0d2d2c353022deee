"""A run of weeks, failure by failure: the events behind the closed form of `goodput`."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megacore.planning.goodput import Goodput, Reliability, best_interval


@dataclass(frozen=True)
class FailureKind:
    """A cause of interruptions.

    Attributes:
        name: What failed.
        count: How often, in the run that was published.
        repair: Whether the node has to be replaced.
    """

    name: str
    count: int
    repair: bool


@dataclass(frozen=True)
class PublishedFailures:
    """Interruptions of a run that its authors published.

    Attributes:
        name: What the command line calls it.
        source: Where it was published.
        gpus: GPUs of the run.
        days: Length of the period.
        effective: Published lower bound of the share of useful training time.
        kinds: Its unexpected interruptions.
    """

    name: str
    source: str
    gpus: int
    days: float
    effective: float
    kinds: tuple[FailureKind, ...]

    @property
    def failures(self) -> int:
        """Unexpected interruptions."""
        return sum(kind.count for kind in self.kinds)

    @property
    def gpu_mtbf_s(self) -> float:
        """Mean time between failures of one GPU, seconds."""
        return self.gpus * self.days * 86400.0 / self.failures

    @property
    def hardware_share(self) -> float:
        """Share of interruptions after which a node has to be replaced."""
        return sum(kind.count for kind in self.kinds if kind.repair) / self.failures


LLAMA3_405B = PublishedFailures(
    name="llama3-405b",
    source="Llama Team, The Llama 3 Herd of Models (2024), table 5 and section 3.3.4",
    gpus=16384,
    days=54.0,
    effective=0.90,
    kinds=(
        FailureKind("faulty GPU", 148, True),
        FailureKind("GPU HBM3 memory", 72, True),
        FailureKind("software bug", 54, False),
        FailureKind("network switch or cable", 35, False),
        FailureKind("host maintenance", 32, True),
        FailureKind("GPU SRAM memory", 19, True),
        FailureKind("GPU system processor", 17, True),
        FailureKind("network card", 7, True),
        FailureKind("NCCL watchdog timeout", 7, False),
        FailureKind("silent data corruption", 6, True),
        FailureKind("GPU thermal interface and sensor", 6, True),
        FailureKind("SSD", 3, True),
        FailureKind("power supply", 3, True),
        FailureKind("server chassis", 2, True),
        FailureKind("IO expansion board", 2, True),
        FailureKind("dependency", 2, False),
        FailureKind("CPU", 2, True),
        FailureKind("system memory", 2, True),
    ),
)
PUBLISHED = {run.name: run for run in (LLAMA3_405B,)}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What happened in a simulated run.

    Attributes:
        use: Shares of its time.
        failures: Kind -> how often.
        seconds: Length of the run.
    """

    use: Goodput
    failures: dict[str, int]
    seconds: float


def replay(
    reliability: Reliability,
    *,
    seconds: float,
    seed: int,
    interval_s: float | None = None,
    kinds: Sequence[FailureKind] = (),
) -> Replay:
    """Lives through a run.

    Args:
        reliability: What fails and what that costs; repairs take `repair_s` each time.
        seconds: Length of the run, wall-clock.
        seed: Of the random numbers; the same seed gives the same run.
        interval_s: Seconds of training between checkpoints; by default the best.
        kinds: Causes, drawn by their counts; by default hardware and software by
            `hardware_share`.
    """
    draw = random.Random(seed)
    interval = best_interval(reliability) if interval_s is None else interval_s
    if not kinds:
        share = reliability.hardware_share
        names, weights = ["hardware", "software"], [share, 1.0 - share]
        repairs = {"hardware": True, "software": False}
    else:
        names = [kind.name for kind in kinds]
        weights = [float(kind.count) for kind in kinds]
        repairs = {kind.name: kind.repair for kind in kinds}
    counts: Counter[str] = Counter()
    spent = dict.fromkeys(("effective", "checkpoints", "lost", "restarts", "waiting"), 0.0)
    in_repair: list[float] = []  # when each node is back
    now, training = 0.0, True
    while now < seconds:
        until = draw.expovariate(reliability.rate)
        planned = math.inf if training else reliability.restart_s
        length = min(until, planned, seconds - now)
        fails = length == until
        if training:
            _account(spent, reliability, interval, length)
        else:
            spent["restarts"] += length
        now += length
        training = not fails
        if not fails:
            continue
        kind = draw.choices(names, weights)[0]
        counts[kind] += 1
        if repairs[kind]:
            while in_repair and in_repair[0] <= now:
                heapq.heappop(in_repair)
            heapq.heappush(in_repair, now + reliability.repair_s)
            if len(in_repair) > reliability.spare_nodes:
                back = min(heapq.heappop(in_repair), seconds)
                spent["waiting"] += max(0.0, back - now)
                now = max(now, back)
    shares = {name: value / seconds for name, value in spent.items()}
    return Replay(
        use=Goodput(interval_s=interval, **shares), failures=dict(counts), seconds=seconds
    )


def _account(
    spent: dict[str, float], reliability: Reliability, interval: float, length: float
) -> None:
    """Splits the time of an attempt, from a restart to the next failure or the end of the run."""
    if interval == 0.0:
        kept, stopped = max(0.0, length - reliability.write_s), 0.0
    else:
        cycle = interval + reliability.checkpoint_s
        complete = max(0, math.floor((length - reliability.write_s) / cycle))
        kept, stopped = complete * interval, complete * reliability.checkpoint_s
    spent["effective"] += kept
    spent["checkpoints"] += stopped
    spent["lost"] += length - kept - stopped

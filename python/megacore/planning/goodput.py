"""Goodput: the share of the wall-clock time of a long run that becomes training progress.

Processes fail independently at a constant rate, so failures of the job are a Poisson process of
rate r = GPUs / mean time between failures of one GPU. After a failure the job needs R seconds
until it computes again (detection, replacement of the node, start, loading); a failure meanwhile
begins that again. A checkpoint stops training for c seconds every t seconds of training, and is
of use w seconds later, when its background writing is over. Then exactly

    goodput = r t exp(-r (R + w)) / (exp(r (t + c)) - 1)

because an attempt lasts 1/r + (exp(r R) - 1)/r on average, and keeps the progress of every
checkpoint that was complete: t sum_k exp(-r (k (t + c) + w)). With w = 0 it is equation (20) of
Daly, A higher order estimate of the optimum checkpoint interval for restart dumps (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A cluster, how often it fails, and what that costs. Times in seconds.

    Attributes:
        gpus: GPUs of the run.
        gpus_per_node: GPUs that are replaced together.
        gpu_mtbf_s: Mean time between failures that a single GPU (with its share of host, network
            and software) causes.
        restart_s: From a failure until training goes on, without the work that is done again.
        checkpoint_s: For which a checkpoint stops training.
        write_s: From then until the checkpoint is complete; 0 when training waits for it.
        hardware_share: Share of the failures after which a node has to be repaired.
        repair_s: Time until that node is back.
        spare_nodes: Nodes that wait to replace others.
    """

    gpus: int
    gpu_mtbf_s: float
    gpus_per_node: int = 8
    restart_s: float = 600.0
    checkpoint_s: float = 30.0
    write_s: float = 0.0
    hardware_share: float = 0.8
    repair_s: float = DAY
    spare_nodes: int = 0

    @property
    def rate(self) -> float:
        """Failures of the job per second."""
        return self.gpus / self.gpu_mtbf_s

    @property
    def nodes(self) -> int:
        """Nodes of the run, without spare ones."""
        return math.ceil(self.gpus / self.gpus_per_node)


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """What becomes of the time of a run; the shares sum to 1.

    Attributes:
        interval_s: Seconds of training between checkpoints.
        effective: Share that becomes progress.
        checkpoints: Share in which training stands still for checkpoints that were of use.
        lost: Share of work that is done again, with the checkpoints within it.
        restarts: Share of restarts.
        waiting: Share in which no spare node is left.
    """

    interval_s: float
    effective: float
    checkpoints: float
    lost: float
    restarts: float
    waiting: float


def young_interval(reliability: Reliability) -> float:
    """sqrt(2 c / r), seconds: the first-order optimum.

    Source: Young, A first order approximation to the optimum checkpoint interval (1974).
    """
    return math.sqrt(2.0 * reliability.checkpoint_s / reliability.rate)


def daly_interval(reliability: Reliability) -> float:
    """The higher-order optimum, seconds.

    Source: Daly (2006), equation (37).
    """
    mean, cost = 1.0 / reliability.rate, reliability.checkpoint_s
    if cost >= 2.0 * mean:
        return mean
    ratio = cost / (2.0 * mean)
    return math.sqrt(2.0 * cost * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def best_interval(reliability: Reliability) -> float:
    """The interval of highest goodput, seconds; at least the time to write a checkpoint.

    The derivative of the formula is zero where x + exp(-(x + r c)) = 1 for x = r t, that is
    x = 1 + W(-exp(-1 - r c)) with Lambert's function; Newton's method from above does not leave
    the convex branch.
    """
    cost = reliability.rate * reliability.checkpoint_s
    x = min(math.sqrt(2.0 * cost), 1.0)
    for _ in range(100):
        if x + cost <= 0.0:
            break
        change = (x + math.expm1(-(x + cost))) / -math.expm1(-(x + cost))
        x -= change
        if abs(change) <= 1e-15 * max(x, 1e-300):
            break
    return max(x / reliability.rate, reliability.write_s)


def goodput(reliability: Reliability, interval_s: float | None = None) -> Goodput:
    """The expected use of time.

    Args:
        reliability: What fails and what that costs.
        interval_s: Seconds of training between checkpoints; by default the best.

    Returns:
        Shares of the wall-clock time; while the job waits for a node nothing of it can fail.
    """
    rate = reliability.rate
    interval = best_interval(reliability) if interval_s is None else interval_s
    running = 1.0 - waiting_share(reliability)
    if interval == 0.0:  # free checkpoints at every moment
        kept, stopped = math.exp(-rate * (reliability.restart_s + reliability.write_s)), 0.0
    else:
        length = rate * (interval + reliability.checkpoint_s)
        survives = math.exp(-length) / -math.expm1(-length)  # expected complete checkpoints
        survives *= math.exp(-rate * (reliability.restart_s + reliability.write_s))
        kept = rate * interval * survives
        stopped = rate * reliability.checkpoint_s * survives
    # An attempt and the restarts after it are exp(r R)/r long, of which 1/r is the attempt.
    working = math.exp(-rate * reliability.restart_s)
    return Goodput(
        interval_s=interval,
        effective=running * kept,
        checkpoints=running * stopped,
        lost=running * max(0.0, working - kept - stopped),
        restarts=running * (1.0 - working),
        waiting=1.0 - running,
    )


def waiting_share(reliability: Reliability) -> float:
    """Share of the time in which more nodes are in repair than there are spare ones.

    Nodes go to repair at rate r times the share of hardware failures, never while the job waits,
    and come back after the repair time, of whatever distribution: Erlang's loss formula with
    spare + 1 places.
    """
    offered = reliability.rate * reliability.hardware_share * reliability.repair_s
    blocked = 1.0
    for place in range(1, reliability.spare_nodes + 2):
        blocked = offered * blocked / (place + offered * blocked)
    return blocked


def spare_nodes_for(reliability: Reliability, availability: float) -> int:
    """Fewest spare nodes with which the job waits for nodes at most 1 - availability of the time.

    Args:
        reliability: As `goodput`; its spare nodes are not used.
        availability: Such as 0.999; less than 1.
    """
    offered = reliability.rate * reliability.hardware_share * reliability.repair_s
    blocked, place = 1.0, 0
    while True:
        place += 1
        blocked = offered * blocked / (place + offered * blocked)
        if blocked <= 1.0 - availability:
            return place - 1


def with_spares(reliability: Reliability, availability: float) -> Reliability:
    """The same with as many spare nodes as `spare_nodes_for` says."""
    return replace(reliability, spare_nodes=spare_nodes_for(reliability, availability))

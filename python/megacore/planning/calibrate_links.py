"""Alpha and beta of communication between the processes of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megacore.parallel.groups import Group

_SIZES = (1 << 12, 1 << 16, 1 << 19, 1 << 21, 1 << 23)
_REPEATS = 9


@dataclass(frozen=True, kw_only=True)
class LinkFit:
    """What a process can send.

    Attributes:
        bytes_per_s: One direction.
        latency_s: Of each step of a collective.
    """

    bytes_per_s: float
    latency_s: float


def fit_link(points: Sequence[tuple[float, float, float]]) -> LinkFit:
    """Time = steps * latency + bytes / rate, of least relative error.

    Args:
        points: Bytes sent by a process, steps, seconds.
    """
    rows = torch.tensor(
        [[steps / seconds, sent / seconds] for sent, steps, seconds in points], dtype=torch.float64
    )
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    latency, inverse = torch.linalg.lstsq(rows, ones).solution.flatten().tolist()
    if inverse <= 0.0:
        inverse = min(seconds / sent for sent, _, seconds in points)
    if latency <= 0.0:
        latency = min(seconds / steps for _, steps, seconds in points) / 2
    return LinkFit(bytes_per_s=1.0 / inverse, latency_s=latency)


def measure_links(group: Group, device: torch.device) -> LinkFit:
    """Rings and transfers among all members; all call it.

    Sent by a process: (n-1)/n of a tensor in n-1 steps when it is gathered or scattered, twice that
    when it is summed everywhere; all of it in one step when it is sent.
    """
    points = []
    n = group.size
    share = (n - 1) / n
    for size in _SIZES:
        whole = torch.ones(size // 4 // n * n, device=device)
        part = torch.ones(size // 4 // n, device=device)
        calls: list[tuple[Callable[[], object], float, int]] = [
            (partial(group.all_reduce, whole, "max"), 2 * share * whole.nbytes, 2 * (n - 1)),
            (partial(group.all_gather, whole, part), share * whole.nbytes, n - 1),
            (partial(group.reduce_scatter, part, whole, "max"), share * whole.nbytes, n - 1),
        ]
        if n % 2 == 0:
            calls.append((partial(_exchange, group, whole), 2.0 * whole.nbytes, 2))
        points += [(sent, steps, _together(group, device, call)) for call, sent, steps in calls]
    return fit_link(points)


def _exchange(group: Group, x: torch.Tensor) -> None:
    """Sends to the neighbour and gets it back, pair by pair."""
    peer = group.rank ^ 1
    if group.rank < peer:
        group.send(x, peer).wait()
        group.recv(x, peer).wait()
    else:
        group.recv(x, peer).wait()
        group.send(x, peer).wait()


def _together(group: Group, device: torch.device, call: Callable[[], object]) -> float:
    """Median time of a call that all members begin together, seconds, the same on all of them."""
    call()
    times = []
    for _ in range(_REPEATS):
        group.barrier()
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    result = torch.tensor([statistics.median(times)], dtype=torch.float32, device=device)
    group.all_reduce(result, op="max")
    return float(result)

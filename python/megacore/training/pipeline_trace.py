"""What the pipeline did in a profiled iteration, beside the simulation of the same schedule."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megacore._C import pipeline as core
from megacore.parallel.groups import Group
from megacore.training.agreement import gathered_texts
from megacore.training.profiling import Profiler

# (action, start, end), microseconds
Event = tuple[Any, float, float]

_COMPUTE = {
    "forward_us": core.Kind.FORWARD,
    "backward_us": core.Kind.BACKWARD,
    "input_grad_us": core.Kind.INPUT_GRAD,
    "weight_grad_us": core.Kind.WEIGHT_GRAD,
}
_CONSUMERS = {
    core.Kind.RECV_FORWARD: (core.Kind.FORWARD,),
    core.Kind.RECV_BACKWARD: (core.Kind.BACKWARD, core.Kind.INPUT_GRAD),
}
_ROUNDS = 8


class PipelineTraces:
    """Writes a trace file for every profiled iteration of the pipeline that has rank 0.

    Args:
        profiler: Says which iterations are profiled.
        group: The ranks of the pipeline.
        device: Where the group's backend wants its tensors.
        directory: Where the files go.
        say: Prints a line that tells where they are.
    """

    def __init__(
        self,
        profiler: Profiler,
        *,
        group: Group,
        device: torch.device,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        self._profiler = profiler
        self._group = group
        self._device = device
        self._directory = directory
        self._say = say

    def record(self, schedule: Any, trace: Any) -> None:
        """Writes the iteration that just ran if it is profiled; all ranks of the pipeline call it.

        Args:
            schedule: `megacore._C.pipeline.Schedule` that ran.
            trace: What this rank did (`megacore._C.pipeline.RunTrace`).
        """
        iteration = self._profiler.iteration
        if iteration is None or 0 not in self._group.ranks:
            return
        shift_ns = clock_shift_ns(self._group, self._device)
        rows = [
            [s.action.stage, int(s.action.kind), s.action.number, s.start_ns, s.end_ns]
            for s in trace.steps
        ]
        for row in rows:
            row[3:] = [row[3] + shift_ns, row[4] + shift_ns]
        texts = gathered_texts(json.dumps(rows), self._group, self._device)
        if not self._group.is_first:
            return
        measured = [timeline_of(json.loads(text)) for text in texts]
        sources = {
            "measured": measured,
            "simulated": core.simulate(schedule, costs_of(measured, schedule.placement.num_stages)),
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"pipeline_iteration_{iteration}.trace.json"
        path.write_text(core.trace_json(schedule.placement, sources), encoding="utf-8")
        self._say(f"pipeline schedule of iteration {iteration}, measured and simulated: {path}")


def timeline_of(rows: Sequence[Sequence[int]]) -> list[Event]:
    """The events of one rank, in order.

    A receive lasts from where it was posted to where the step that needs it starts.

    Args:
        rows: Steps: stage, kind, number, start and end in ns.
    """
    events: list[Event] = []
    starts = {(stage, kind, number): start for stage, kind, number, start, _ in rows}
    for stage, kind, number, start, end in rows:
        for consumer in _CONSUMERS.get(core.Kind(kind), ()):
            end = max(end, starts.get((stage, int(consumer), number), end))
        events.append((core.Action(stage, core.Kind(kind), number), start / 1e3, end / 1e3))
    return events


def costs_of(timelines: Sequence[Sequence[Event]], num_stages: int) -> Any:
    """Mean time of each kind of step of each stage, as costs for a simulation.

    Args:
        timelines: Rank -> its events.
        num_stages: Stages of the schedule.
    """
    times: dict[tuple[int, int], list[float]] = defaultdict(list)
    for events in timelines:
        for action, start, end in events:
            times[int(action.kind), action.stage].append(end - start)
    means = {
        name: [
            sum(found) / len(found) if (found := times[int(kind), stage]) else 0.0
            for stage in range(num_stages)
        ]
        for name, kind in _COMPUTE.items()
    }
    return core.Costs(**means)


def clock_shift_ns(
    group: Group,
    device: torch.device,
    *,
    host: str | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> int:
    """What to add to this rank's monotonic clock to get that of the group's first rank.

    Processes of one host have the same clock. Others ask the first rank a few times; the answer
    that took the least time counts, and is right to within half of that time.

    Args:
        group: Who takes part.
        device: Where the group's backend wants its tensors.
        host: Name of this host; None for its real one.
        clock: Nanoseconds.
    """
    hosts = gathered_texts(platform.node() if host is None else host, group, device)
    best: tuple[int, int] | None = None
    for peer, its_host in enumerate(hosts):
        if its_host == hosts[0] or group.rank not in (0, peer):
            continue
        for _ in range(_ROUNDS):
            message = torch.zeros(1, dtype=torch.int64, device=device)
            if group.is_first:
                group.recv(message, peer).wait()
                message.fill_(clock())
                group.send(message, peer).wait()
                continue
            asked = clock()
            group.send(message, 0).wait()
            group.recv(message, 0).wait()
            answer, answered = int(message), clock()
            candidate = (answered - asked, answer - (asked + answered) // 2)
            best = candidate if best is None else min(best, candidate)
    return 0 if best is None else best[1]

"""Traces of profiled pipelines: complete, in the order of the schedule, on one clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_worlds import train_here
from worker_pool import WorkerPools

from megacore._C import pipeline
from megacore.parallel.groups import Group
from megacore.training.pipeline_trace import clock_shift_ns, costs_of, timeline_of


@pytest.mark.parametrize(("size", "name"), [(2, "1f1b"), (4, "interleaved"), (2, "zb-v")])
def test_a_profiled_iteration(world: WorkerPools, tmp_path: Path, size: int, name: str) -> None:
    flags = (
        f"--pipeline-model-parallel-size {size} --profile --profile-step-start 2 "
        f"--profile-step-end 4 --profile-ranks --tensorboard-dir {tmp_path}"
    ).replace("--profile-ranks ", "--profile-ranks 99 ")
    flags += {
        "interleaved": " --num-layers 8 --num-layers-per-virtual-pipeline-stage 1",
        "1f1b": "",
    }.get(name, f" --pipeline-schedule {name}")
    results = world(size).run(train_here, flags)
    names = [f"pipeline_iteration_{iteration}.trace.json" for iteration in (3, 4)]
    found = sorted(file.name for file in tmp_path.glob("pipeline_*"))
    assert found == names
    assert all(file in results[0].printed for file in names)
    events = json.loads((tmp_path / names[0]).read_text())["traceEvents"]
    processes = {
        e["pid"]: e["args"]["name"]
        for e in events
        if e["ph"] == "M" and e["name"] == "process_name"
    }
    schedule = pipeline.make_schedule(
        name, num_ranks=size, num_microbatches=8, num_chunks=2 if name != "1f1b" else 0
    )
    for kind in ("measured", "simulated"):
        for rank, row in enumerate(schedule.ranks):
            pids = [
                pid for pid, text in processes.items() if kind in text and f"rank {rank}" in text
            ]
            assert len(pids) == 1
            steps = [e for e in events if e["ph"] == "X" and e["pid"] == pids[0]]
            compute = sorted(
                (e for e in steps if e["cat"] not in ("send", "receive")), key=lambda e: e["ts"]
            )
            assert [e["name"] for e in compute] == [str(action) for action in row]
            assert all(e["dur"] > 0 for e in compute)
            ends = [e["ts"] + e["dur"] for e in compute]
            overlaps = [end - e["ts"] for end, e in zip(ends, compute[1:], strict=False)]
            assert max(overlaps) < 0.01, kind
    assert_causal(events)


def assert_causal(events: list[dict[str, Any]]) -> None:
    """No arrow goes back in time: the ranks' clocks are the same."""
    starts = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ends = [(starts[e["id"]], e["ts"]) for e in events if e["ph"] == "f"]
    assert ends
    assert all(start <= end for start, end in ends)


def test_receives_last_until_they_are_needed() -> None:
    kind = pipeline.Kind
    rows = [
        [1, int(kind.RECV_FORWARD), 0, 1000, 2000],
        [1, int(kind.FORWARD), 0, 9000, 12000],
        [1, int(kind.RECV_BACKWARD), 0, 12000, 13000],
        [1, int(kind.INPUT_GRAD), 0, 20000, 24000],
        [1, int(kind.WEIGHT_GRAD), 0, 24000, 25000],
    ]
    events = timeline_of(rows)
    assert [(str(action), start, end) for action, start, end in events] == [
        ("1RECV_F0", 1.0, 9.0),
        ("1F0", 9.0, 12.0),
        ("1RECV_B0", 12.0, 20.0),
        ("1I0", 20.0, 24.0),
        ("1W0", 24.0, 25.0),
    ]
    later = [(action, start + 50, end + 52) for action, start, end in events]
    costs = costs_of([events, later], 2)
    assert costs.forward_us == [0.0, 4.0]
    assert costs.input_grad_us == [0.0, 5.0]
    assert costs.weight_grad_us == [0.0, 2.0]
    assert costs.backward_us == [0.0, 0.0]


def shift_of(group: Group, skews_ns: list[int], hosts: list[str]) -> int:
    skew = skews_ns[group.rank]
    return clock_shift_ns(
        group,
        torch.device("cpu"),
        host=hosts[group.rank],
        clock=lambda: time.monotonic_ns() + skew,
    )


def test_clocks_of_other_hosts(world: WorkerPools) -> None:
    hour = 3_600_000_000_000
    skews = [5, hour, -hour, 7 * hour]
    shifts = world(4).run(shift_of, skews, ["a", "b", "a", "c"])
    assert shifts[0] == 0
    assert shifts[2] == 0  # the same host: the same clock, whatever it says
    for rank in (1, 3):
        # Within the time of a message, which a loaded machine may stretch.
        assert abs(shifts[rank] + skews[rank] - skews[0]) < 1_000_000_000

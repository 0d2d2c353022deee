"""Processes that meet, compare their flags, build their groups, fail and part."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lone_processes import run_processes
from shared_groups import groups_for
from worker_pool import WorkerPools

from megacore.errors import ConfigError
from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import group_ranks
from megacore.parallel.groups import GROUP_NAMES, Group, ParallelGroups
from megacore.parallel.launch import Process, current_process, first_host, meeting_point
from megacore.parallel.startup import build_groups, choose_backend, parallel_groups

TIMEOUT = 3.0


@contextmanager
def joined(
    environment: dict[str, str], settings: dict[str, Any] | None = None, **flags: Any
) -> Iterator[ParallelGroups]:
    process = current_process(environment)
    config = ParallelConfig(
        world_size=process.world_size,
        distributed_backend="gloo",
        distributed_timeout_seconds=TIMEOUT,
        **flags,
    )
    with parallel_groups(
        config,
        process=process,
        meeting_point=lambda: meeting_point(environment),
        settings=settings or {},
    ) as groups:
        yield groups


def all_is_well(rank: int, environment: dict[str, str], directory: str) -> None:
    with joined(environment, tensor_model_parallel_size=2, use_tp_pp_dp_mapping=True) as groups:
        x = torch.tensor([float(rank)])
        groups.tp.all_reduce(x)
        Path(directory, f"sum_{rank}").write_text(f"{x.item()} {groups.dp.ranks}")
        if rank == 0:
            # The last to come to the end is waited for, also by the one that serves the store.
            time.sleep(0.5)


def test_processes_meet_and_part(tmp_path: Path) -> None:
    ended = run_processes(all_is_well, 4, tmp_path, str(tmp_path))
    assert [(one.code, one.lines) for one in ended] == [(0, [])] * 4
    found = [(tmp_path / f"sum_{rank}").read_text() for rank in range(4)]
    assert found == ["1.0 (0, 2)", "1.0 (1, 3)", "5.0 (0, 2)", "5.0 (1, 3)"]


def different_flags(rank: int, environment: dict[str, str]) -> None:
    settings = {"lr": 0.1, "hidden_size": 64, "bf16": True}
    if rank == 1:
        settings |= {"lr": 0.2, "hidden_size": 65}
    if rank == 2:
        del settings["bf16"]
    with joined(environment, settings):
        pass


def test_different_flags_are_named_on_all_processes(tmp_path: Path) -> None:
    ended = run_processes(different_flags, 4, tmp_path)
    assert [one.code for one in ended] == [2] * 4
    # The message is the same everywhere, so a command prints it once; here every one is the first.
    for one in ended:
        assert "[MC0905] All processes must be started with the same flags" in one.text
        assert (
            "process 1: --hidden-size 65 where process 0 has 64; --lr 0.2 where process 0 has 0.1"
        ) in one.text
        assert "process 2: --bf16 (nothing) where process 0 has true" in one.text
        assert "process 3" not in one.text


def steps(rank: int, environment: dict[str, str], how: str) -> None:
    with joined(environment) as groups:
        for step in range(4):
            groups.record.step = step
            x = torch.ones(5, 7)
            if rank == 2 and step == 2:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "raise":
                    raise ValueError("the disk is full")
                if how == "skip":
                    continue
            groups.world.all_reduce(x)


def test_a_killed_process_ends_all(tmp_path: Path) -> None:
    ended = run_processes(steps, 4, tmp_path, "kill")
    assert [one.code for one in ended] == [1, 1, -9, 1]
    for rank in (0, 1, 3):
        words = f"rank {rank}: all_reduce of a tensor [5, 7] float32 in group world"
        assert f"{words} (ranks 0, 1, 2, 3) failed in step 2: " in ended[rank].text


def test_a_process_that_skips_an_operation_ends_all(tmp_path: Path) -> None:
    ended = run_processes(steps, 4, tmp_path, "skip")
    assert [one.code for one in ended] == [1] * 4
    for rank in (0, 1, 3):
        words = f"rank {rank}: all_reduce of a tensor [5, 7] float32 in group world"
        assert words in ended[rank].text
        assert "failed in step 3" in ended[rank].text
    assert "rank 2: end of the run in group world" in ended[2].text
    assert "all_reduce of a tensor [5, 7] float32" in ended[2].text


def test_an_exception_on_one_process_ends_all_and_is_named(tmp_path: Path) -> None:
    ended = run_processes(steps, 4, tmp_path, "raise")
    assert [one.code for one in ended] == [1] * 4
    assert "ValueError: the disk is full" in ended[2].text
    for rank in (0, 1, 3):
        assert "the first failure was: rank 2: ValueError: the disk is full" in ended[rank].text


def all_groups(world: Group, flags: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], float]]:
    assert world.process_group is not None
    config = ParallelConfig(world_size=world.size, **flags)
    made = groups_for(config, world)
    groups = build_groups(config, world=world.process_group, made=made)
    assert (groups.rank, groups.world_size) == (world.rank, world.size)
    groups.record.step = 3
    found = {}
    for name in GROUP_NAMES:
        group = getattr(groups, name)
        assert group.name == name
        assert group.record.step == 3
        assert group.global_rank == world.rank
        x = torch.tensor([float(world.rank)], dtype=torch.float64)
        group.all_reduce(x)
        found[name] = (group.ranks, x.item())
    return found


LAYOUTS: list[dict[str, Any]] = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 2, "context_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "use_tp_pp_dp_mapping": True},
    {"pipeline_model_parallel_size": 4, "pipeline_schedule": "zb-v"},
    {"pipeline_model_parallel_size": 4, "pipeline_schedule": "dualpipe"},
    {"order": "dp-tp-cp-pp", "tensor_model_parallel_size": 2},
]


@pytest.mark.parametrize("flags", LAYOUTS, ids=lambda flags: "-".join(map(str, flags.values())))
def test_groups_of_a_layout_communicate(world: WorkerPools, flags: dict[str, Any]) -> None:
    results = world(4).run(all_groups, flags)
    config = ParallelConfig(world_size=4, **flags)
    for rank, found in enumerate(results):
        wanted = {"world": (0, 1, 2, 3), **group_ranks(config, rank)}
        assert found == {name: (ranks, float(sum(ranks))) for name, ranks in wanted.items()}


@pytest.mark.parametrize(
    ("schedule", "embedding", "positions"),
    [
        ("1f1b", (0, 6), (0,)),
        ("zb-v", (0,), (0,)),
        ("dualpipe", (0, 6), (0, 6)),
        ("dualpipev", (0,), (0,)),
    ],
)
def test_who_holds_the_embeddings(schedule: str, embedding: tuple, positions: tuple) -> None:
    config = ParallelConfig(
        world_size=8,
        pipeline_model_parallel_size=4,
        tensor_model_parallel_size=2,
        pipeline_schedule=schedule,
    )
    ranks = group_ranks(config, 0)
    assert (ranks["embedding"], ranks["position_embedding"]) == (embedding, positions)
    assert group_ranks(config, 3)["embedding"] == (3,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPU")
def test_absent_nccl_is_refused() -> None:
    config = ParallelConfig(world_size=2, distributed_backend="nccl")
    with pytest.raises(ConfigError, match=r"\[MC0906\] The backend .* is not there") as caught:
        choose_backend(config, Process(1, 2, 1))
    assert "allowed: gloo" in str(caught.value)
    assert choose_backend(ParallelConfig(world_size=2), Process(1, 2, 1)) == "gloo"


SLURM = {"SLURM_STEP_NODELIST": "gpu[07-12,20],cpu1", "SLURM_JOB_ID": "123456"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MASTER_ADDR": "a", "MASTER_PORT": "29500"}, ("a", 29500, False)),
        (
            {
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            ("a", 1, True),
        ),
        (SLURM, ("gpu07", 23456, False)),
        ({**SLURM, "MASTER_ADDR": "b", "MASTER_PORT": "77"}, ("b", 77, False)),
    ],
)
def test_meeting_point(environment: dict[str, str], expected: tuple[str, int, bool]) -> None:
    point = meeting_point(environment)
    assert (point.address, point.port, point.is_hosted) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MASTER_ADDR": "a"},
        {"MASTER_PORT": "29500"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "x"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "70000"},
    ],
)
def test_no_meeting_point(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"\[MC0907\] Several processes need MASTER_ADDR"):
        meeting_point(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[3,5-9]", "n3"),
        ("n[003-009]", "n003"),
        ("rack[1-2]n,x", "rack1n"),
        ("", ""),
    ],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_one_process_needs_nothing() -> None:
    with parallel_groups(
        ParallelConfig(), process=Process(), meeting_point=meeting_point, settings={}
    ) as groups:
        assert groups.world.size == 1


def started_again(rank: int, environment: dict[str, str], port: int, dies: bool) -> None:
    environment |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with joined(environment, {"lr": 1.0 if dies else 2.0}) as groups:
        groups.world.all_reduce(torch.ones(2))
        if dies and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        groups.world.all_reduce(torch.ones(2))


def test_a_restart_ignores_what_the_former_start_left(tmp_path: Path) -> None:
    launcher = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ended = run_processes(started_again, 2, tmp_path, launcher.port, True)
    assert [one.code for one in ended] == [1, -9]
    # One that came and died before it was answered.
    launcher.add("start/visitors", 1)
    ended = run_processes(started_again, 2, tmp_path, launcher.port, False)
    assert [one.code for one in ended] == [0, 0], ended

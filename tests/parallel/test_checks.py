"""Different calls on different processes are named on all of them, before anything hangs."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lone_processes import run_processes
from test_startup import TIMEOUT, joined
from worker_pool import WorkerPools

from megacore.errors import CommunicationError
from megacore.parallel.checks import StoreChecker
from megacore.parallel.groups import Group, StepRecord

MISTAKES = {
    "shape": "all_reduce of a tensor [6] float32 in step 4",
    "dtype": "all_reduce of a tensor [5] float64 in step 4",
    "operation": "all_gather of a tensor [5] float32 in step 4",
    "step": "all_reduce of a tensor [5] float32 in step 5",
    "barrier": "barrier in step 4",
}


def mistaken(rank: int, environment: dict[str, str], mistake: str) -> None:
    with joined(environment, check_collectives=True, tensor_model_parallel_size=3) as groups:
        group = groups.tp
        for step in range(4):
            groups.record.step = step
            group.all_reduce(torch.ones(3))
            groups.world.all_reduce(torch.ones(2))
        groups.record.step = 4
        if rank != 1:
            group.all_reduce(torch.ones(5))
        elif mistake == "shape":
            group.all_reduce(torch.ones(6))
        elif mistake == "dtype":
            group.all_reduce(torch.ones(5, dtype=torch.float64))
        elif mistake == "operation":
            group.all_gather(torch.empty(15), torch.ones(5))
        elif mistake == "step":
            groups.record.step = 5
            group.all_reduce(torch.ones(5))
        elif mistake == "barrier":
            group.barrier()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_on_all_processes(tmp_path: Path, mistake: str) -> None:
    ended = run_processes(mistaken, 3, tmp_path, mistake)
    assert [one.code for one in ended] == [1] * 3
    others = "ranks 0, 2: all_reduce of a tensor [5] float32 in step 4"
    for one in ended:
        assert "the members call different operations: " in one.text
        assert others in one.text
        assert f"rank 1: {MISTAKES[mistake]}" in one.text


def never_calls(rank: int, environment: dict[str, str]) -> None:
    with joined(environment, check_collectives=True) as groups:
        groups.record.step = 1
        groups.world.all_reduce(torch.ones(4))
        if rank == 2:
            time.sleep(TIMEOUT + 2)
        groups.world.all_reduce(torch.ones(5))


def test_a_missing_call_is_named(tmp_path: Path) -> None:
    ended = run_processes(never_calls, 3, tmp_path)
    assert [one.code for one in ended] == [1] * 3
    for one in ended[:2]:
        assert "not called within 3 s by rank 2; the last call of rank 2 was all_reduce of a " in (
            one.text
        )
        assert "tensor [4] float32 in step 1 (number 1 of group world)" in one.text


def transfers(rank: int, environment: dict[str, str], late: int, fits: bool) -> None:
    with joined(environment, check_collectives=True) as groups:
        group = groups.world
        for _ in range(3):
            x = torch.full((4,), float(rank))
            work = group.send(x, 1, 3) if rank == 0 else group.recv(x, 0, 3)
            work.wait()
            assert x.tolist() == [0.0] * 4
        if rank == late:
            time.sleep(0.3)
        if rank == 0:
            group.send(torch.ones(8), 1, 3).wait()
        else:
            group.recv(torch.empty(8 if fits else 4), 0, 3).wait()


@pytest.mark.parametrize("late", [0, 1])
def test_messages_that_do_not_fit(tmp_path: Path, late: int) -> None:
    ended = run_processes(transfers, 2, tmp_path, late, False)
    assert [one.code for one in ended] == [1, 1]
    words = [
        "rank 0: send to rank 1 of a tensor [8] float32 in group world (ranks 0, 1) failed before "
        "the first step: rank 1 calls recv with a tensor [4] float32",
        "rank 1: recv from rank 0 of a tensor [4] float32 in group world (ranks 0, 1) failed "
        "before the first step: rank 0 calls send with a tensor [8] float32",
    ]
    assert words[late] in ended[late].text


def test_messages_that_fit(tmp_path: Path) -> None:
    ended = run_processes(transfers, 2, tmp_path, 0, True)
    assert [one.code for one in ended] == [0, 0]


def uneven(world: Group, path: str) -> tuple[list[float], int]:
    store = torch.distributed.FileStore(path, world.size)
    checker = StoreChecker(
        store,
        group="world",
        ranks=world.ranks,
        rank=world.rank,
        record=StepRecord(),
        timeout=timedelta(seconds=20),
    )
    group = Group("world", world.ranks, world.rank, world.process_group, checker=checker)
    out = torch.empty(3)
    sent = [1, 2] if group.rank == 0 else [2, 1]
    received = [1, 2] if group.rank == 0 else [2, 1]
    for _ in range(20):
        group.all_to_all(out, torch.full((3,), float(group.rank)), received, sent)
        group.barrier()
    group.barrier()
    return out.tolist(), store.num_keys()


def test_uneven_parts_agree_and_keys_are_deleted(world: WorkerPools, tmp_path: Path) -> None:
    results = world(2).run(uneven, str(tmp_path / "store"))
    assert [found for found, _ in results] == [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    # Of the 41 calls only the keys of the last remain, and what each process called last.
    assert max(count for _, count in results) < 12


def test_a_lost_store_is_an_error(tmp_path: Path) -> None:
    class Lost(torch.distributed.Store):
        pass

    checker = StoreChecker(
        Lost(), group="g", ranks=(0, 1), rank=0, record=StepRecord(), timeout=timedelta(seconds=1)
    )
    with pytest.raises(CommunicationError, match="the calls could not be compared"):
        checker.check("all_reduce", (3,), "float32")

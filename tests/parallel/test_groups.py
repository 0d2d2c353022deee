"""Every operation of a group against the same arithmetic in one process."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
from worker_pool import WorkerError, WorkerPools

from megacore.errors import CommunicationError
from megacore.parallel.groups import GROUP_NAMES, Group, single_process_groups

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64]


def values(rank: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Small integers, which every dtype holds and adds exactly."""
    generator = torch.Generator().manual_seed(rank + 1)
    return torch.randint(-8, 8, shape, generator=generator).to(dtype)


def all_operations(group: Group, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    size, rank = group.size, group.rank
    out: dict[str, torch.Tensor] = {}
    for op in ("sum", "max", "min", "avg"):
        if op == "avg" and not dtype.is_floating_point:
            continue
        x = values(rank, 3, 5, dtype=dtype)
        group.all_reduce(x, op)
        out[f"all_reduce {op}"] = x
        y = torch.empty(2, 3, dtype=dtype)
        group.reduce_scatter(y, values(rank, 2 * size, 3, dtype=dtype), op)
        out[f"reduce_scatter {op}"] = y
    gathered = torch.empty(3 * size, 2, dtype=dtype)
    group.all_gather(gathered, values(rank, 3, 2, dtype=dtype))
    out["all_gather"] = gathered
    exchanged = torch.empty(2 * size, 3, dtype=dtype)
    group.all_to_all(exchanged, values(rank, 2 * size, 3, dtype=dtype))
    out["all_to_all"] = exchanged
    # Rank s sends s + r rows to rank r, also none at all.
    sent, received = [rank + r for r in range(size)], [s + rank for s in range(size)]
    uneven = torch.empty(sum(received), 2, dtype=dtype)
    group.all_to_all(uneven, values(rank, sum(sent), 2, dtype=dtype), received, sent)
    out["all_to_all uneven"] = uneven
    copied = values(rank, 7, dtype=dtype)
    group.broadcast(copied, size - 1)
    out["broadcast"] = copied
    ring = torch.empty(2, 3, dtype=dtype)
    to_send = values(rank, 2, 3, dtype=dtype)
    works = [group.recv(ring, (rank - 1) % size, 5), group.send(to_send, (rank + 1) % size, 5)]
    for work in works:
        work.wait()
    out["ring"] = ring
    group.barrier()
    return out


def expected(rank: int, size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    def of_all(*shape: int) -> torch.Tensor:
        return torch.stack([values(r, *shape) for r in range(size)])

    reductions = {
        "sum": lambda x: x.sum(0),
        "max": lambda x: x.amax(0),
        "min": lambda x: x.amin(0),
        "avg": lambda x: x.mean(0),
    }
    out = {}
    for op, reduce in reductions.items():
        if op == "avg" and not dtype.is_floating_point:
            continue
        out[f"all_reduce {op}"] = reduce(of_all(3, 5))
        out[f"reduce_scatter {op}"] = reduce(of_all(2 * size, 3))[2 * rank : 2 * rank + 2]
    out["all_gather"] = of_all(3, 2).flatten(0, 1)
    out["all_to_all"] = of_all(2 * size, 3)[:, 2 * rank : 2 * rank + 2].flatten(0, 1)
    uneven = []
    for s in range(size):
        rows = [s + r for r in range(size)]
        uneven.append(values(s, sum(rows), 2).split(rows)[rank])
    out["all_to_all uneven"] = torch.cat(uneven)
    out["broadcast"] = values(size - 1, 7)
    out["ring"] = values((rank - 1) % size, 2, 3)
    return {name: x.to(dtype) for name, x in out.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("size", [2, 4])
def test_operations(world: WorkerPools, size: int, dtype: torch.dtype) -> None:
    for rank, found in enumerate(world(size).run(all_operations, dtype)):
        wanted = expected(rank, size, dtype)
        assert found.keys() == wanted.keys()
        for name, x in found.items():
            assert torch.equal(x, wanted[name]), (rank, name)


def test_group_of_one_copies() -> None:
    groups = single_process_groups()
    for name in GROUP_NAMES:
        assert (getattr(groups, name).size, getattr(groups, name).rank) == (1, 0)
    wanted = expected(0, 1, torch.float64)
    for name, x in all_operations_alone(groups.tp).items():
        assert torch.equal(x, wanted[name]), name
    assert (groups.rank, groups.world_size) == (0, 1)


def all_operations_alone(group: Group) -> dict[str, torch.Tensor]:
    x, y, z = values(0, 3, 5), values(1, 2, 3), values(1, 3, 2)
    group.all_reduce(x)
    group.reduce_scatter(y, values(0, 2, 3))
    group.all_gather(z, values(0, 3, 2), async_op=True).wait()
    group.barrier()
    return {"all_reduce sum": x, "reduce_scatter sum": y, "all_gather": z}


def in_flight(group: Group) -> list[float]:
    tensors = [torch.full((1000,), float(group.rank + i)) for i in range(8)]
    works = [group.all_reduce(x, async_op=True) for x in tensors]
    for work in reversed(works):
        work.wait()
        work.wait()
        assert work.is_completed()
    return [float(x[-1]) for x in tensors]


def test_operations_in_flight(world: WorkerPools) -> None:
    for found in world(2).run(in_flight):
        assert found == [2.0 * i + 1.0 for i in range(8)]


def in_place(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    whole = torch.zeros(2 * group.size)
    own = whole[2 * group.rank : 2 * group.rank + 2]
    own += group.rank + 1
    group.all_gather(whole, own)
    gathered = whole.clone()
    group.reduce_scatter(own, whole)
    return gathered, own.clone()


def test_buffers_are_gathered_and_scattered_in_place(world: WorkerPools) -> None:
    for rank, (gathered, own) in enumerate(world(4).run(in_place)):
        assert gathered.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
        assert own.tolist() == [4 * (rank + 1)] * 2


def wrong_call(group: Group) -> str:
    group.record.step = 7
    with pytest.raises(CommunicationError) as caught:
        group.all_gather(torch.empty(3), torch.empty(5, dtype=torch.bfloat16))
    return str(caught.value)


def test_errors_name_the_operation(world: WorkerPools) -> None:
    for rank, message in enumerate(world(2).run(wrong_call)):
        words = f"rank {rank}: all_gather of a tensor [5] bfloat16 in group world (ranks 0, 1)"
        assert message.startswith(words + " failed in step 7: "), message


def fail_on(group: Group, rank: int, how: str) -> Any:
    if group.rank == rank:
        if how == "raise":
            raise KeyError("lost")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
    group.barrier()
    return os.getpid()


@pytest.mark.parametrize("how", ["raise", "die", "hang"])
def test_pool_survives_failures(world: WorkerPools, how: str) -> None:
    before = world(2).run(fail_on, -1, how)
    with pytest.raises(WorkerError) as caught:
        world(2).run(fail_on, 1, how, timeout=2.0)
    if how == "raise":
        assert (caught.value.rank, caught.value.kind) == (1, "KeyError")
        assert "lost" in str(caught.value)
        assert "fail_on" in str(caught.value)
    after = world(2).run(fail_on, -1, how)
    assert not set(before) & set(after)

"""Groups that only count, against the volumes of ring algorithms."""

from __future__ import annotations

import torch

from megacore.parallel.config import ParallelConfig
from megacore.parallel.context_ring import start_shift
from megacore.planning.traffic import SimulatedGroup, Traffic, simulated_groups


def test_bytes_of_each_operation() -> None:
    traffic = Traffic()
    group = SimulatedGroup("g", (0, 3, 6, 9), 1, traffic=traffic)
    whole, part = torch.empty(8, 10, device="meta"), torch.empty(2, 10, device="meta")
    group.all_reduce(whole, async_op=True).wait()
    group.all_gather(whole, part)
    group.reduce_scatter(part, whole)
    group.all_to_all(whole, whole)
    group.send(part, 2).wait()
    group.recv(part, 0).wait()
    group.barrier()
    assert traffic.sent_bytes == {
        ("g", "all_reduce"): 2 * 320 * 3 // 4,
        ("g", "all_gather"): 3 * 80,
        ("g", "reduce_scatter"): 320 * 3 // 4,
        ("g", "all_to_all"): 320 * 3 // 4,
        ("g", "send"): 80,
    }
    taken = traffic.take()
    assert set(taken.calls.values()) == {1}
    assert not traffic.calls
    assert not traffic.sent_bytes
    start_shift(torch.empty_like(part), part, group)
    assert traffic.sent_bytes == {("g", "all_to_all"): 80}
    traffic.add_all(taken, 3)
    assert traffic.sent_bytes["g", "all_to_all"] == 80 + 3 * 240
    assert traffic.calls["g", "all_gather"] == 3


def test_group_of_one_sends_nothing() -> None:
    traffic = Traffic()
    group = SimulatedGroup("g", traffic=traffic)
    x = torch.ones(3)
    group.all_reduce(x)
    group.all_gather(torch.empty(3), x)
    assert not traffic.calls


def test_groups_of_a_rank() -> None:
    parallel = ParallelConfig(
        world_size=32,
        tensor_model_parallel_size=2,
        context_parallel_size=2,
        pipeline_model_parallel_size=4,
    ).resolved()
    groups = simulated_groups(parallel, 9, traffic=Traffic())
    assert groups.tp.ranks == (8, 9)
    assert groups.cp.ranks == (9, 11)
    assert groups.dp.ranks == (9, 13)
    assert groups.pp.ranks == (1, 9, 17, 25)
    assert (groups.rank, groups.world_size, groups.pp.rank) == (9, 32, 1)
    assert groups.embedding.size == 1

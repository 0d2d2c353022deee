"""Sharded gradients and parameters, and sharding inside sub-groups, against one process."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from data_training import Case, build, data_parallel_groups, microbatches, train
from test_data_equality import bitwise, check
from torch import Tensor, nn
from worker_pool import WorkerPools

from megacore.errors import UsageError
from megacore.models.config import RecomputeConfig
from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group

GRADIENTS: dict[str, Any] = {
    "data_parallel_sharding_strategy": "optim_grads",
    "ddp_bucket_size": 3000,
}
PARAMETERS: dict[str, Any] = {**GRADIENTS, "data_parallel_sharding_strategy": "optim_grads_params"}
OVERLAP: dict[str, Any] = {"overlap_grad_reduce": True, "overlap_param_gather": True}
FINE: dict[str, Any] = {"ddp_bucket_size": 1}

MODES = {
    "gradients": GRADIENTS,
    "gradients-overlap": {**GRADIENTS, **OVERLAP, "ddp_average_in_collective": True},
    "parameters": PARAMETERS,
    "parameters-one-bucket": {"data_parallel_sharding_strategy": "optim_grads_params"},
    "parameters-by-layer": {**PARAMETERS, **FINE, **OVERLAP},
}


def recompute(granularity: str, method: str | None, layers: int | None) -> RecomputeConfig:
    return RecomputeConfig(
        recompute_granularity=granularity,
        recompute_method=method,
        recompute_num_layers=layers,
    )


KINDS = {
    "adam": Case(),
    "sgd": Case(optimizer={"optimizer": "sgd"}),
    "untied": Case(model={"untie_embeddings_and_output_weights": True}),
    "frozen": Case(frozen="layers.1."),
    "per-token": Case(per_token=True),
    "recompute": Case(recompute=recompute("full", "block", 2)),
    "recompute-all": Case(recompute=recompute("full", "uniform", 2)),
    "recompute-core": Case(recompute=recompute("selective", None, None)),
}


@functools.cache
def alone(kind: str) -> Any:
    return train(None, KINDS[kind])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_replicas_equal_one_process(world: WorkerPools, size: int, mode: str) -> None:
    for rank, found in enumerate(world(size).run(train, Case(parallel=MODES[mode]))):
        check(found, alone("adam"), size, rank)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"adam"}))
@pytest.mark.parametrize("mode", ["gradients-overlap", "parameters", "parameters-by-layer"])
def test_kinds_of_training(world: WorkerPools, mode: str, kind: str) -> None:
    case = replace(KINDS[kind], parallel=MODES[mode])
    for rank, found in enumerate(world(2).run(train, case)):
        check(found, alone(kind), 2, rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [GRADIENTS, PARAMETERS], ids=["gradients", "parameters"])
def test_overlap_changes_nothing(world: WorkerPools, base: dict, dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, precision={"bf16": dtype == torch.bfloat16}, parallel=base)
    without = world(3).run(train, case)
    overlapped = replace(case, parallel={**base, **OVERLAP})
    for runs in (world(3).run(train, overlapped), world(3).run(train, overlapped)):
        for one, other in zip(without, runs, strict=True):
            bitwise(one, other)
            bitwise(other, runs[0])


def bytes_by_phase(group: Group | None, dtype: torch.dtype, strategy: str) -> list[float]:
    """Bytes per parameter: at rest, between forward and backward, after the step."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(512, 512, bias=False, dtype=dtype) for _ in range(4)])
    optimizer = build_optimizer(
        [layers],
        optimizer=OptimizerConfig(),
        precision=PrecisionConfig(bf16=dtype == torch.bfloat16),
        groups=data_parallel_groups(group),
        parallel=ParallelConfig(data_parallel_sharding_strategy=strategy, ddp_bucket_size=1),
    )
    found = []
    x = torch.ones(2, 512, dtype=dtype, requires_grad=True)
    for layer in layers:
        x = layer(x) * 0.01
    found.append(optimizer.memory_report().bytes_per_parameter)
    optimizer.backward(x.float().sum())
    found.append(optimizer.memory_report().bytes_per_parameter)
    optimizer.step(Rates(0.1, 0.0))
    found.append(optimizer.memory_report().bytes_per_parameter)
    return found


@pytest.mark.parametrize(
    ("dtype", "strategy", "fixed", "shared"),
    [
        (torch.bfloat16, "optim_grads", 2, 16),
        (torch.bfloat16, "optim_grads_params", 0, 16),
        (torch.float32, "optim_grads", 4, 12),
        (torch.float32, "optim_grads_params", 0, 16),
    ],
)
def test_bytes_per_parameter(
    world: WorkerPools, dtype: torch.dtype, strategy: str, fixed: int, shared: int
) -> None:
    for size in (2, 4):
        for found in world(size).run(bytes_by_phase, dtype, strategy):
            assert found == [fixed + shared / size] * 3


def instances(group: Group, case: Case, count: int) -> Any:
    """Training with the optimizer sharded inside of `count` sub-groups of neighbours."""
    size = group.size // count
    new = torch.distributed.new_group
    shards = [tuple(range(i * size, (i + 1) * size)) for i in range(count)]
    replicas = [tuple(range(i, group.size, size)) for i in range(size)]
    handles = {ranks: new(list(ranks)) for ranks in (*shards, *replicas)}

    def mine(name: str, parts: list[tuple[int, ...]]) -> Group:
        ranks = next(part for part in parts if group.rank in part)
        return Group(name, ranks, ranks.index(group.rank), handles[ranks])

    shard, replica = mine("shard", shards), mine("replica", replicas)
    return train(group, case, groups={"shard": shard, "replica": replica})


@pytest.mark.parametrize("strategy", ["optim", "optim_grads", "optim_grads_params"])
@pytest.mark.parametrize("overlap", [{}, {**OVERLAP, "ddp_average_in_collective": True}])
def test_instances_equal_one_process(world: WorkerPools, strategy: str, overlap: dict) -> None:
    parallel = {
        "data_parallel_sharding_strategy": strategy,
        "num_distributed_optimizer_instances": 2,
        "ddp_bucket_size": 2000,
        **overlap,
    }
    results = world(4).run(instances, Case(parallel=parallel), 2)
    for rank, found in enumerate(results):
        check(found, alone("adam"), 4, rank)
        bitwise(found, results[0])


def saved_and_loaded(group: Group, dtype: torch.dtype) -> bool:
    """Weights are read by state_dict after a step, and written while they are spread."""
    precision = {"bf16": dtype == torch.bfloat16}
    case = Case(dtype=dtype, precision=precision, parallel={**PARAMETERS, **FINE, **OVERLAP})
    first = train(group, replace(case, steps=2))
    whole = train(group, case)
    model, optimizer = build(case, group)
    tokens = microbatches(9, group.rank, group.size)[0]
    optimizer.backward(model(tokens[:, :-1], labels=tokens[:, 1:]).mean())
    optimizer.step(Rates(0.01, 0.1))
    with pytest.raises(RuntimeError, match="finish_params"):
        optimizer.refresh_main_params()
    optimizer.finish_params()
    model.load_state_dict(first.params)
    optimizer.load_state(first.state, {"step": 2, "loss_scale": {"scale": 1.0}})
    third = train(group, case, start=(model, optimizer, 2))
    saved = model.state_dict()
    return all(
        torch.equal(whole.params[name], third.params[name])
        and torch.equal(saved[name], third.params[name])
        for name in whole.params
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_saved_and_loaded(world: WorkerPools, dtype: torch.dtype) -> None:
    assert all(world(2).run(saved_and_loaded, dtype))


def evaluated(group: Group) -> tuple[Tensor, Tensor, int, int]:
    """Forward without gradients, twice; bytes of parameters it leaves, and of those not in layers.

    Those outside of layers stay.
    """
    case = Case(dtype=torch.float64, parallel={**PARAMETERS, **FINE, **OVERLAP})
    model, optimizer = build(case, group)
    tokens = microbatches(9, 0, 1)[0]
    with torch.no_grad():
        first = model(tokens[:, :-1], labels=tokens[:, 1:])
        second = model(tokens[:, :-1], labels=tokens[:, 1:])
    outside = sum(b.size for b in optimizer.buckets if not b.is_layers)
    return first, second, optimizer.memory_report().parameters, 8 * outside


def test_forward_without_gradients(world: WorkerPools) -> None:
    model, _ = build(Case(), None)
    tokens = microbatches(9, 0, 1)[0]
    wanted = model(tokens[:, :-1], labels=tokens[:, 1:]).detach()
    for first, second, left, outside in world(2).run(evaluated):
        assert left == outside
        assert torch.equal(first, wanted)
        assert torch.equal(second, wanted)


def unused_layer(group: Group | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(7, 7, dtype=torch.float64) for _ in range(3)])
    strategy = "no_shard" if group is None else "optim_grads_params"
    optimizer = build_optimizer(
        [layers],
        optimizer=OptimizerConfig(adam_eps=1e-6),
        precision=PrecisionConfig(),
        groups=data_parallel_groups(group),
        parallel=ParallelConfig(data_parallel_sharding_strategy=strategy),
    )
    for step in range(3):
        optimizer.zero_grad()
        for _ in range(2):
            x = torch.full((2, 7), 0.1 * (step + 1), dtype=torch.float64)
            optimizer.backward(layers[2](layers[0](x)).square().mean())
        optimizer.step(Rates(0.01, 0.1))
    optimizer.finish_params()
    return {name: p.detach().clone() for name, p in layers.named_parameters()}


def test_layers_that_nobody_uses(world: WorkerPools) -> None:
    wanted = unused_layer(None)
    for found in world(2).run(unused_layer):
        for name, param in wanted.items():
            assert torch.allclose(found[name], param, rtol=1e-12, atol=0.0), name


def parameters_alone(group: Group) -> str:
    try:
        build_optimizer(
            [{"weight": nn.Parameter(torch.ones(3))}],
            optimizer=OptimizerConfig(),
            precision=PrecisionConfig(),
            groups=data_parallel_groups(group),
            parallel=ParallelConfig(**PARAMETERS),
        )
    except UsageError as error:
        return str(error)
    return ""


def test_sharded_parameters_need_modules(world: WorkerPools) -> None:
    for message in world(2).run(parameters_alone):
        assert "needs modules" in message

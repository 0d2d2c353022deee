"""Promises of the optimizer across processes: memory, skipped steps, state, misuse, tied copies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from data_training import OPTIMIZER, Case, build, build_model, data_parallel_groups, train
from torch import Tensor, nn
from worker_pool import WorkerPools

from megacore.errors import UsageError
from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group, single_process_groups
from megacore.parallel.layout import ParamLayout

SHARDED: dict[str, Any] = {"ddp_bucket_size": 3000, "use_distributed_optimizer": True}
OVERLAP: dict[str, Any] = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def memory(group: Group | None, dtype: torch.dtype, precision: dict, sharded: bool) -> tuple:
    # One matrix whose size needs no padding for up to 4 shards.
    model = nn.Linear(512, 256, bias=False, dtype=dtype)
    optimizer = build_optimizer(
        [model],
        optimizer=OptimizerConfig(),
        precision=PrecisionConfig(**precision),
        groups=data_parallel_groups(group),
        parallel=ParallelConfig(use_distributed_optimizer=sharded),
    )
    report = optimizer.memory_report()
    return report.bytes_per_parameter, report.num_params, str(report)


KINDS = {
    "bf16": (torch.bfloat16, {"bf16": True}, 6, 12),
    "fp32": (torch.float32, {}, 8, 8),
    "fp16": (torch.float16, {"fp16": True}, 4, 16),
    "fp16-fp32-gradients": (
        torch.float16,
        {"fp16": True, "accumulate_allreduce_grads_in_fp32": True},
        6,
        12,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_per_parameter(world: WorkerPools, kind: str) -> None:
    dtype, precision, fixed, shared = KINDS[kind]
    assert memory(None, dtype, precision, True)[0] == fixed + shared
    for size in (2, 4):
        for found, count, text in world(size).run(memory, dtype, precision, True):
            assert found == fixed + shared / size
            assert count == 512 * 256
            assert f"{found:.2f} bytes per parameter for 131072 parameters" in text
    for found, _, _ in world(2).run(memory, dtype, precision, False):
        assert found == fixed + shared


@pytest.mark.parametrize("parallel", [{}, {**SHARDED, **OVERLAP}], ids=["plain", "sharded"])
def test_overflow_on_one_process_skips_on_all(world: WorkerPools, parallel: dict) -> None:
    case = Case(
        dtype=torch.float16,
        precision={"fp16": True, "initial_loss_scale": 256.0, "hysteresis": 1},
        parallel=parallel,
        poison=(2, 1),
    )
    results = world(3).run(train, case)
    for found in results:
        assert found.updated == [True, True, False, True, True]
        assert found.scales == [256.0, 256.0, 128.0, 128.0, 128.0]
        assert not math.isfinite(found.norms[2])
        for name, param in found.params.items():
            assert torch.equal(param, results[0].params[name])
            assert torch.isfinite(param).all()


def resume(group: Group, case: Case, other: dict[str, Any]) -> bool:
    """Trains 5 steps; then 2 steps, state through whole tensors into another layout, 3 steps."""
    whole = train(group, case)
    first = train(group, replace(case, steps=2))
    second = replace(case, parallel=other)
    model, optimizer = build(second, group)
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(first.params[name])
    optimizer.refresh_main_params()
    optimizer.load_state(first.state, {"step": 2, "loss_scale": {"scale": 1.0}})
    owned = {piece.name for piece in optimizer.state_pieces()}
    assert owned <= first.state.keys()
    for piece in optimizer.state_pieces():
        flat = first.state[piece.name].flatten()
        assert torch.equal(piece.data, flat[piece.start : piece.start + piece.data.numel()])
    # Go on from step 2.
    third = train(group, replace(second, steps=5), start=(model, optimizer, 2))
    assert whole.params.keys() == third.params.keys()
    return all(
        torch.equal(whole.params[name], third.params[name]) for name in whole.params
    ) and all(torch.equal(whole.state[name], third.state[name]) for name in whole.state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_moves_between_layouts(world: WorkerPools, dtype: torch.dtype) -> None:
    # Without clipping: the last bits of a norm depend on who sums which range.
    case = Case(
        dtype=dtype,
        precision={"bf16": dtype == torch.bfloat16},
        parallel={**SHARDED, **OVERLAP},
        optimizer={"clip_grad": 0.0},
    )
    # Buckets of other sizes: every process owns other ranges. Sums over two processes do not
    # depend on where they are cut.
    other = {"use_distributed_optimizer": True, "ddp_bucket_size": 1000}
    assert all(world(2).run(resume, case, other))
    assert all(world(2).run(resume, case, {}))


def unused(group: Group | None, parallel: dict[str, Any], used: tuple[bool, ...]) -> Any:
    """Two layers, of which each process uses the second only if `used` says so."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(7, 7, dtype=torch.float64) for _ in range(2)])
    optimizer = build_optimizer(
        [model],
        optimizer=OptimizerConfig(**OPTIMIZER),
        precision=PrecisionConfig(),
        groups=data_parallel_groups(group),
        parallel=ParallelConfig(**parallel),
    )
    ranks = range(len(used)) if group is None else [group.rank]
    for step in range(3):
        optimizer.zero_grad()
        for rank in ranks:
            x = torch.full((2, 7), 0.1 * (rank + step + 1), dtype=torch.float64)
            y = model[0](x)
            if used[rank]:
                y = model[1](y)
            optimizer.last_microbatch()
            optimizer.backward(y.square().mean() / (len(used) if group is None else 1))
        optimizer.step(Rates(0.01, 0.1))
    optimizer.finish_params()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("used", [(True, False, True), (False, False, False)])
def test_parameters_that_some_do_not_use(world: WorkerPools, used: tuple[bool, ...]) -> None:
    alone = unused(None, {}, used)
    parallel = {**SHARDED, **OVERLAP, "ddp_bucket_size": 1}
    for found in world(3).run(unused, parallel, used):
        for name, param in alone.items():
            assert torch.allclose(found[name], param, rtol=1e-12, atol=0.0), name


def late_gradient(group: Group) -> str:
    model, optimizer = build(Case(parallel={"overlap_grad_reduce": True}), group)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    optimizer.last_microbatch()
    for _ in range(2):
        loss = model(tokens, labels=tokens).mean()
        try:
            optimizer.backward(loss)
        except RuntimeError as error:
            optimizer.finish_gradients()
            return str(error)
    return ""


def test_a_gradient_after_the_reduction_is_an_error(world: WorkerPools) -> None:
    for message in world(2).run(late_gradient):
        assert "after the reduction of its bucket had started" in message


class Stage(nn.Module):
    """A first or last pipeline stage around a table that both have."""

    def __init__(self, *, is_copy: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        table = nn.Parameter(torch.randn(11, 6, generator=generator, dtype=torch.float64))
        if is_copy:
            self.output_layer = nn.Module()
            self.output_layer.weight = table
            self.norm = nn.LayerNorm(6, dtype=torch.float64)
        else:
            self.embedding = nn.Module()
            self.embedding.word_embeddings = nn.Module()
            self.embedding.word_embeddings.weight = table
            self.layer = nn.Linear(6, 6, dtype=torch.float64)


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        assert param.grad is not None
        param.grad.copy_(torch.randn(param.shape, generator=generator, dtype=torch.float64))


def tied_copies(group: Group, parallel: dict[str, Any]) -> tuple[float, Tensor, Tensor, float]:
    """Stage 0 on ranks 0 and 1, stage 1 on ranks 2 and 3; replicas are {0, 1} and {2, 3}."""
    stage, replica = divmod(group.rank, 2)
    new = torch.distributed.new_group
    dp_groups = [new([0, 1]), new([2, 3])]
    pp_groups = [new([0, 2]), new([1, 3])]
    dp = Group("dp", (2 * stage, 2 * stage + 1), replica, dp_groups[stage])
    pp = Group("pp", (replica, replica + 2), stage, pp_groups[replica])
    embedding = replace(pp, name="embedding")
    groups = replace(
        single_process_groups(), world=group, dp=dp, dp_cp=dp, pp=pp, model=pp, embedding=embedding
    )
    model = Stage(is_copy=stage == 1)
    layouts = {
        name: ParamLayout(name=name, full_shape=tuple(param.shape))
        for name, param in model.named_parameters()
    }
    if stage == 1:
        name = "output_layer.weight"
        layouts[name] = replace(
            layouts[name], name="embedding.word_embeddings.weight", is_copy=True
        )
    optimizer = build_optimizer(
        [model],
        optimizer=OptimizerConfig(**OPTIMIZER),
        precision=PrecisionConfig(),
        layouts=layouts,
        groups=groups,
        parallel=ParallelConfig(**parallel),
        tied_embeddings=True,
    )
    set_gradients(model, 10 * stage + replica)
    result = optimizer.step(Rates(0.1, 0.1))
    optimizer.finish_params()
    table = next(p for n, p in model.named_parameters() if p.shape == (11, 6))
    rest = torch.cat([p.detach().flatten() for p in model.parameters() if p is not table])
    assert result.grad_norm is not None
    return result.grad_norm, table.detach().clone(), rest, optimizer.params_norm()


def expected_tied_norm() -> float:
    stages = [Stage(is_copy=False), Stage(is_copy=True)]
    means = []
    for index, stage in enumerate(stages):
        totals = [torch.zeros_like(p) for p in stage.parameters()]
        for replica in range(2):
            for param in stage.parameters():
                param.grad = torch.zeros_like(param)
            set_gradients(stage, 10 * index + replica)
            for total, param in zip(totals, stage.parameters(), strict=True):
                assert param.grad is not None
                total += param.grad / 2
        means.append(dict(zip([n for n, _ in stage.named_parameters()], totals, strict=True)))
    table = means[0].pop("embedding.word_embeddings.weight") + means[1].pop("output_layer.weight")
    rest = [*means[0].values(), *means[1].values()]
    return math.sqrt(sum(float(g.square().sum()) for g in [table, *rest]))


@pytest.mark.parametrize("parallel", [{}, {**SHARDED, **OVERLAP}], ids=["plain", "sharded"])
def test_tied_copies_stay_equal_and_count_once(world: WorkerPools, parallel: dict) -> None:
    results = world(4).run(tied_copies, parallel)
    norm = expected_tied_norm()
    for found, table, _, params_norm in results:
        assert found == pytest.approx(norm, rel=1e-12)
        assert torch.equal(table, results[0][1])
        assert params_norm == results[0][3]
    total = sum(float(t.square().sum()) for t in (results[0][1], results[0][2], results[2][2]))
    assert results[0][3] == pytest.approx(math.sqrt(total), rel=1e-12)


def tensor_parallel(group: Group, parallel: dict[str, Any]) -> tuple[float, Tensor, Tensor]:
    """A cut matrix, and a vector of which each process computes a part of the gradient."""
    groups = replace(single_process_groups(), world=group, tp=group, model=group)
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    params = {
        "matrix": nn.Parameter(full.chunk(2)[group.rank].clone()),
        "vector": nn.Parameter(torch.ones(70, dtype=torch.float64)),
        "plain": nn.Parameter(torch.ones(3, dtype=torch.float64)),
    }
    layouts = {
        "matrix": ParamLayout(
            name="matrix", full_shape=(6, 5), shard_dim=0, num_shards=2, shard=group.rank
        ),
        "vector": ParamLayout(name="vector", full_shape=(70,), partial_grad=True),
        "plain": ParamLayout(name="plain", full_shape=(3,)),
    }
    optimizer = build_optimizer(
        [params],
        optimizer=OptimizerConfig(optimizer="sgd", sgd_momentum=0.0, clip_grad=0.0),
        precision=PrecisionConfig(),
        layouts=layouts,
        groups=groups,
        parallel=ParallelConfig(**parallel),
    )
    for name, value in (("matrix", 2.0), ("vector", 1.0 + group.rank), ("plain", 5.0)):
        params[name].grad.fill_(value)
    result = optimizer.step(Rates(1.0, 0.0), count_zero_grads=True)
    assert result.num_zeros == 0
    assert result.grad_norm is not None
    return result.grad_norm, params["vector"].detach(), params["plain"].detach()


def test_tensor_parallel_parameters_count_once(world: WorkerPools) -> None:
    for norm, vector, plain in world(2).run(tensor_parallel, {}):
        assert norm == pytest.approx(math.sqrt(30 * 4.0 + 70 * 9.0 + 3 * 25.0), rel=1e-14)
        assert torch.equal(vector, torch.full_like(vector, 1.0 - 3.0))
        assert torch.equal(plain, torch.full_like(plain, 1.0 - 5.0))


def test_gathering_during_forward_needs_modules(world: WorkerPools) -> None:
    for message in world(2).run(parameters_alone):
        assert "needs modules" in message


def parameters_alone(group: Group) -> str:
    try:
        build_optimizer(
            [dict(build_model(Case()).named_parameters())],
            optimizer=OptimizerConfig(),
            precision=PrecisionConfig(),
            groups=data_parallel_groups(group),
            parallel=ParallelConfig(**SHARDED, **OVERLAP),
        )
    except UsageError as error:
        return str(error)
    return ""


def gather_late(group: Group) -> bool:
    """state_dict waits for parameters that are under way."""
    model, optimizer = build(Case(parallel={**SHARDED, **OVERLAP}), group)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.backward(model(tokens, labels=tokens).mean())
        optimizer.step(Rates(0.1, 0.1))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.finish_params()
    return all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


def test_saving_waits_for_the_parameters(world: WorkerPools) -> None:
    assert all(world(2).run(gather_late))

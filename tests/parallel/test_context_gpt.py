"""A GPT whose sequences are cut among ranks, against the same GPT in one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from context_gpt import GROUPED, MODELS, ROTARY, build, summed, train, train_remote
from torch import Tensor
from worker_pool import WorkerPools

from megacore.errors import UsageError
from megacore.models.config import RecomputeConfig
from megacore.parallel.context import apply_context_parallel
from megacore.parallel.groups import Group
from megacore.testing.tolerance import rms_error

SELECTIVE = RecomputeConfig(recompute_granularity="selective")
UNIFORM = RecomputeConfig(
    recompute_granularity="full", recompute_method="uniform", recompute_num_layers=2
)


@cache
def single(model: str, packed: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    return summed([train(Group("cp"), MODELS[model], packed=packed, dtype=dtype)])


def spread(world: WorkerPools, size: int, changes: dict[str, Any], **options: Any) -> list[Any]:
    return world(size).run(train_remote, changes, options)


def cases() -> list[tuple[int, str, str, bool]]:
    found = []
    for size in (2, 4):
        for model in MODELS:
            for comm_type in ("p2p", "a2a"):
                if (comm_type, model) in (("a2a", "multi-query"), ("p2p", "windows")):
                    continue
                found += [(size, model, comm_type, packed) for packed in (False, True)]
    return found


@pytest.mark.parametrize(("size", "model", "comm_type", "packed"), cases())
def test_equals_single_process(
    world: WorkerPools, size: int, model: str, comm_type: str, packed: bool
) -> None:
    results = spread(world, size, MODELS[model], comm_type=comm_type, packed=packed)
    found, wanted = summed(results), single(model, packed, torch.float64)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        error = (found[name] - x).abs().max() / x.abs().max()
        assert error <= 1e-10, (name, error)


@pytest.mark.parametrize("comm_type", ["p2p", "a2a"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("model", ["learned", "grouped"])
def test_bfloat16(world: WorkerPools, model: str, packed: bool, comm_type: str) -> None:
    """The error against float64 is at most twice that of one process in bfloat16."""
    options = {"comm_type": comm_type, "packed": packed, "dtype": torch.bfloat16}
    found = summed(spread(world, 4, MODELS[model], **options))
    own, wanted = single(model, packed, torch.bfloat16), single(model, packed, torch.float64)
    for name, x in wanted.items():
        rounding = torch.finfo(torch.bfloat16).eps * x.square().mean().sqrt().item()
        assert rms_error(found[name], x) <= 2 * max(rms_error(own[name], x), rounding / 2), name


def differences(first: list[Any], second: list[Any]) -> list[str]:
    """What is not bitwise the same, on any rank."""
    return [
        name
        for (loss, grads), (other_loss, others) in zip(first, second, strict=True)
        for name in ["loss", *grads]
        if not torch.equal(
            loss if name == "loss" else grads[name],
            other_loss if name == "loss" else others[name],
        )
    ]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("comm_type", ["p2p", "a2a"])
def test_dropout_is_repeated(world: WorkerPools, comm_type: str, packed: bool) -> None:
    """Twice the same is bitwise the same, with recompute too; other seeds are not."""
    changes = ROTARY | GROUPED | {"attention_dropout": 0.2, "hidden_dropout": 0.1}
    options = {"comm_type": comm_type, "packed": packed, "dtype": torch.float32}
    first = spread(world, 4, changes, **options)
    assert not differences(first, spread(world, 4, changes, **options))
    for recompute in (SELECTIVE, UNIFORM):
        assert not differences(first, spread(world, 4, changes, recompute=recompute, **options))
    assert differences(first, spread(world, 4, changes, seed=12, **options))


@pytest.mark.parametrize("comm_type", ["p2p", "a2a"])
def test_recompute(world: WorkerPools, comm_type: str) -> None:
    first = spread(world, 2, MODELS["grouped"], comm_type=comm_type)
    for recompute in (SELECTIVE, UNIFORM):
        again = spread(world, 2, MODELS["grouped"], comm_type=comm_type, recompute=recompute)
        assert not differences(first, again)


def test_indivisible_groups_are_reported() -> None:
    model = build(MODELS["multi-query"], dtype=torch.float32)
    with pytest.raises(UsageError, match="the 1 key/value groups of a"):
        apply_context_parallel(model, Group("cp", (0, 1)), comm_type="a2a")


def test_what_a_ring_cannot_compute_is_refused() -> None:
    model = build(MODELS["windows"], dtype=torch.float32)
    with pytest.raises(UsageError, match="no window, no cap"):
        apply_context_parallel(model, Group("cp", (0, 1)))
    scaling = {"rope_scaling_type": "longrope", "rope_scaling_original_length": 16}
    scaling |= {"rope_scaling_short_factors": (1.0,) * 3, "rope_scaling_long_factors": (2.0,) * 3}
    model = build(ROTARY | scaling, dtype=torch.float32)
    with pytest.raises(UsageError, match="whole sequences"):
        apply_context_parallel(model, Group("cp", (0, 1)), comm_type="a2a")


def test_positions_are_needed() -> None:
    model = build({}, dtype=torch.float32)
    apply_context_parallel(model, Group("cp", (0, 1)))
    with pytest.raises(UsageError, match="needs the positions"):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_one_rank_changes_nothing() -> None:
    model = build({}, dtype=torch.float32)
    before = [type(module) for module in model.modules()]
    apply_context_parallel(model, Group("cp"))
    assert [type(module) for module in model.modules()] == before

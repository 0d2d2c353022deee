"""Context parallelism together with tensor and sequence parallelism, on 2 x 2 processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed
from context_gpt import GROUPED, ROTARY, build, loss_of, train
from tensor_models import reduce_partial_grads
from torch import Tensor
from worker_pool import WorkerPools

from megacore.models.config import RecomputeConfig
from megacore.parallel.context import apply_context_parallel
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout, full_tensor
from megacore.parallel.random_streams import tensor_stream
from megacore.parallel.recompute import apply_random_streams
from megacore.parallel.tensor import apply_tensor_parallel

MODEL = ROTARY | GROUPED | {"qk_layernorm": True, "position_embedding_type": "rope"}
SELECTIVE = RecomputeConfig(recompute_granularity="selective")
UNIFORM = RecomputeConfig(
    recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
)


@cache
def grid(rank: int) -> tuple[Group, Group]:
    """The tensor-parallel and the context-parallel group of a rank."""
    found = {}
    for name, all_ranks in {"tp": ((0, 1), (2, 3)), "cp": ((0, 2), (1, 3))}.items():
        for ranks in all_ranks:
            process_group = torch.distributed.new_group(list(ranks))
            if rank in ranks:
                found[name] = Group(name, ranks, ranks.index(rank), process_group)
    return found["tp"], found["cp"]


def train_on_grid(world: Group, changes: dict[str, Any], options: dict[str, Any]) -> Any:
    """Loss, gradients and layouts on this rank; gradients that are partial over tp are summed."""
    tp, cp = grid(world.rank)
    recompute, dtype = options.get("recompute"), options.get("dtype", torch.float64)
    whole = build(changes, dtype=dtype)
    model = build(changes, dtype=dtype, recompute=recompute)
    layouts = apply_tensor_parallel(model, tp, sequence_parallel=options["sequence"])
    with torch.no_grad():
        full = dict(whole.named_parameters())
        for name, parameter in model.named_parameters():
            parameter.copy_(layouts[name].local(full[name]))
    apply_context_parallel(model, cp, comm_type=options["comm_type"])
    stream = tensor_stream(options.get("seed", 1) + 100 * cp.rank, tp.rank, torch.device("cpu"))
    torch.manual_seed(options.get("seed", 1) + 100 * cp.rank)
    apply_random_streams(model, stream, every_dropout=options["sequence"])
    loss = loss_of(model, cp, packed=options["packed"])
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    reduce_partial_grads(grads, layouts, tp)
    return loss.detach(), grads, layouts


def together(results: list[Any]) -> dict[str, Tensor]:
    """Whole gradients: parts of tp ranks put together, those of cp ranks added."""
    total = {"loss": results[0][0] + results[2][0]}
    for name in results[0][1]:
        layouts: list[ParamLayout] = [results[tp][2][name] for tp in (0, 1)]
        wholes = [
            full_tensor(layouts, [results[2 * cp + tp][1][name] for tp in (0, 1)]) for cp in (0, 1)
        ]
        total[name] = wholes[0] + wholes[1]
    return total


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("comm_type", ["p2p", "a2a"])
@pytest.mark.parametrize("recompute", [None, SELECTIVE, UNIFORM], ids=["kept", "core", "layers"])
def test_equals_single_process(
    world: WorkerPools,
    recompute: RecomputeConfig | None,
    comm_type: str,
    sequence: bool,
    packed: bool,
) -> None:
    options = {
        "comm_type": comm_type,
        "sequence": sequence,
        "packed": packed,
        "recompute": recompute,
    }
    found = together(world(4).run(train_on_grid, MODEL, options))
    loss, grads = train(Group("cp"), MODEL, packed=packed)
    for name, x in {"loss": loss, **grads}.items():
        error = (found[name] - x).abs().max() / x.abs().max()
        assert error <= 1e-10, (name, error)


@pytest.mark.parametrize("comm_type", ["p2p", "a2a"])
def test_dropout_is_repeated(world: WorkerPools, comm_type: str) -> None:
    changes = MODEL | {"attention_dropout": 0.2, "hidden_dropout": 0.1}
    options = {"comm_type": comm_type, "sequence": True, "packed": False, "dtype": torch.float32}
    first = together(world(4).run(train_on_grid, changes, options))
    for recompute in (None, SELECTIVE, UNIFORM):
        again = together(world(4).run(train_on_grid, changes, options | {"recompute": recompute}))
        assert all(torch.equal(first[name], again[name]) for name in first)
    other = together(world(4).run(train_on_grid, changes, options | {"seed": 2}))
    assert not torch.equal(first["loss"], other["loss"])

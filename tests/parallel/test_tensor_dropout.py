"""Which dropout is the same on all processes and layouts, which is not, and recompute of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tensor_models import ROTARY, Case, run_step, single_step, split_model, split_step
from test_tensor_equality import expect_equal
from torch import Tensor
from worker_pool import WorkerPools

from megacore.errors import CheckpointError
from megacore.layers.attention import AttentionContext
from megacore.parallel.groups import Group
from megacore.parallel.random_streams import RandomStream, Streamed, tensor_stream

HIDDEN = {"hidden_dropout": 0.3}
ATTENTION = {"attention_dropout": 0.3}
CPU = torch.device("cpu")

RECOMPUTE = {
    "selective": {"recompute_granularity": "selective"},
    "uniform": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    "block": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 1,
    },
}


@pytest.mark.parametrize("recompute", [{}, RECOMPUTE["uniform"]], ids=["kept", "recomputed"])
def test_dropout_of_the_residual_stream_is_that_of_one_process(
    world: WorkerPools, recompute: dict[str, object]
) -> None:
    case = Case(HIDDEN, recompute=recompute)
    expect_equal(world(2).run(split_step, case), *single_step(case))


def drawn_by_core_attention(group: Group, case: Case) -> list[Tensor]:
    """Which attention weights each layer dropped, seen in its output for values of one."""
    model, _ = split_model(case, group)
    seen: list[Tensor] = []
    for layer in model.decoder.layers.values():
        core = layer.self_attention.core_attention
        q = torch.zeros(1, 12, 2, 1, 4, dtype=case.dtype)
        ones = torch.ones(1, 12, 2, 4, dtype=case.dtype)
        torch.manual_seed(1)
        seen.append(core(q, ones, ones, AttentionContext()))
    return seen


def test_attention_dropout_differs_between_processes(world: WorkerPools) -> None:
    one, other = world(2).run(drawn_by_core_attention, Case(ATTENTION))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    # The stream goes on from layer to layer, whatever the default generator does.
    assert not torch.equal(one[0], one[1])


def hidden_dropout_draws(group: Group, case: Case) -> Tensor:
    model, _ = split_model(case, group)
    torch.manual_seed(1)
    layer = model.decoder.layers["1"]
    dropped: Tensor = layer.hidden_dropout(torch.ones(50))
    return dropped


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_residual_stream_dropout_per_process(world: WorkerPools, sequence_parallel: bool) -> None:
    case = Case(HIDDEN, sequence_parallel=sequence_parallel)
    one, other = world(2).run(hidden_dropout_draws, case)
    assert torch.equal(one, other) != sequence_parallel


def states_after_two_steps(
    group: Group, case: Case
) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """Losses, gradients, and states of both generators."""
    model, _ = split_model(case, group)
    losses = [run_step(model, case) for _ in range(2)]
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    core = next(module for module in model.modules() if isinstance(module, Streamed))
    return losses, grads, [torch.get_rng_state(), *core.stream.state_tensors().values()]


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tp", "sp"])
@pytest.mark.parametrize("name", [*RECOMPUTE, "slices"])
def test_recompute_repeats_dropout_bitwise(
    world: WorkerPools, name: str, sequence_parallel: bool
) -> None:
    if name == "slices" and sequence_parallel:
        pytest.skip("what is recomputed from is split along the sequence already")
    case = Case(
        ROTARY | HIDDEN | ATTENTION, dtype=torch.float32, sequence_parallel=sequence_parallel
    )
    again = dataclasses.replace(
        case, recompute=RECOMPUTE.get(name, RECOMPUTE["uniform"]), slices=name == "slices"
    )
    kept = world(2).run(states_after_two_steps, case)
    redone = world(2).run(states_after_two_steps, again)
    for (losses, grads, states), (losses_2, grads_2, states_2) in zip(kept, redone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(losses, losses_2, strict=True))
        assert not torch.equal(losses[0], losses[1])
        for key, grad in grads.items():
            assert torch.equal(grad, grads_2[key]), key
        assert all(torch.equal(a, b) for a, b in zip(states, states_2, strict=True))


def test_stream_stands_apart_from_the_default_generator() -> None:
    stream = RandomStream(3, CPU)
    torch.manual_seed(5)
    wanted_outside = torch.rand(4)
    expected = torch.Generator().manual_seed(3)
    torch.manual_seed(5)
    with stream.active():
        inside = torch.rand(3)
    outside = torch.rand(4)
    with stream.active():
        inside = torch.cat([inside, torch.rand(2)])
    assert torch.equal(outside, wanted_outside)
    assert torch.equal(
        inside, torch.cat([torch.rand(3, generator=expected), torch.rand(2, generator=expected)])
    )


def test_stream_survives_an_error() -> None:
    stream = RandomStream(3, CPU)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), stream.active():
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_can_be_saved_and_restored() -> None:
    stream, other = tensor_stream(3, 1, CPU), tensor_stream(4, 1, CPU)
    with stream.active():
        torch.rand(3)
    saved = stream.state_tensors()
    with stream.active():
        wanted = torch.rand(5)
    other.load_state(saved)
    with other.active():
        assert torch.equal(torch.rand(5), wanted)
    with pytest.raises(CheckpointError, match="lacks cpu"):
        stream.load_state({})
    with pytest.raises(CheckpointError, match="state cpu"):
        stream.load_state({"cpu": torch.zeros(3, dtype=torch.uint8)})


def test_seeds_of_streams() -> None:
    for rank in range(3):
        with tensor_stream(100, rank, CPU).active():
            assert torch.initial_seed() == 100 + 2718 + rank

"""Split models in low precision, and that a run repeated is bitwise the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tensor_models import ROTARY, Case, gathered, single_step, split_step
from torch import Tensor
from worker_pool import WorkerPools

from megacore.parallel.linear import Overlap
from megacore.testing.tolerance import rms_error

PIECES = Overlap(gather_pieces=True, scatter_pieces=True, scatter_grad_pieces=True)

CASES = {
    "tp": Case(),
    "tp-rope": Case(ROTARY),
    "sp": Case(sequence_parallel=True),
    "sp-rope": Case(ROTARY, sequence_parallel=True),
    "sp-pieces": Case(ROTARY, sequence_parallel=True, overlap=PIECES),
    "sp-fp32-residual": Case({"fp32_residual_connection": True}, sequence_parallel=True),
}


def expect_as_good(
    found: Tensor, single: Tensor, exact: Tensor, *, floor: float, name: str
) -> None:
    """The error is at most twice that of one process in the same dtype."""
    error = rms_error(found, exact)
    assert error <= 2.0 * max(rms_error(single, exact), floor), name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_good_as_in_one_process(world: WorkerPools, name: str, size: int) -> None:
    case = dataclasses.replace(CASES[name], dtype=torch.bfloat16)
    steps = world(size).run(split_step, case)
    losses, grads = single_step(case)
    # The same bfloat16 weights, computed with in float64.
    exact_losses, exact_grads = single_step(CASES[name], rounded=torch.bfloat16)
    expect_as_good(steps[0].losses, losses, exact_losses, floor=0.0, name="losses")
    rounding = torch.finfo(torch.bfloat16).eps
    for key, grad in gathered(steps).items():
        assert grad.dtype == torch.bfloat16
        floor = rounding * exact_grads[key].square().mean().sqrt().item()
        expect_as_good(grad, grads[key], exact_grads[key], floor=floor, name=key)


@pytest.mark.parametrize("in_half", [False, True])
def test_float16_loss(world: WorkerPools, in_half: bool) -> None:
    case = Case({"init_method_std": 0.1}, dtype=torch.float16, in_half=in_half)
    losses, _ = single_step(case)
    exact, _ = single_step(dataclasses.replace(case, dtype=torch.float64), rounded=torch.float16)
    for step in world(2).run(split_step, case):
        assert step.losses.dtype == torch.float32
        expect_as_good(step.losses, losses, exact, floor=0.0, name="losses")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tp-rope", "sp", "sp-pieces"])
def test_repeated_run_is_bitwise_equal(world: WorkerPools, name: str, dtype: torch.dtype) -> None:
    dropout = {"attention_dropout": 0.2, "hidden_dropout": 0.1}
    case = dataclasses.replace(CASES[name], dtype=dtype)
    case = dataclasses.replace(case, model=case.model | dropout)
    first, second = world(4).run(split_step, case), world(4).run(split_step, case)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.losses, two.losses)
        assert all(torch.equal(grad, two.grads[name]) for name, grad in one.grads.items())

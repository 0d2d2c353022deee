"""The fused AdamW step against float64 and against PyTorch's optimizer."""

from __future__ import annotations

import pytest
import torch

from megacore.ops.adamw import adamw_reference, adamw_step

SIZES = [0, 1, 7, 64, 1021, 40_000]
CONSTANTS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def state(size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    param = torch.randn(size, generator=generator)
    grads = [torch.randn(size, generator=generator) for _ in range(5)]
    zeros = torch.zeros(size)
    return [t.to(dtype) for t in (param, zeros, zeros.clone())], [g.to(dtype) for g in grads]


def steps(function, tensors, grads, **extra):
    param, exp_avg, exp_avg_sq = tensors
    for number, grad in enumerate(grads, start=1):
        function(param, grad, exp_avg, exp_avg_sq, step=number, **CONSTANTS, **extra)
    return tensors


@pytest.mark.parametrize("size", SIZES)
def test_five_steps_against_float64_within_twice_the_error_of_torch(size):
    exact = steps(adamw_reference, *state(size, dtype=torch.float64))[0]
    ours = steps(adamw_step, *state(size))[0]
    (theirs, _, _), grads = state(size)
    theirs.requires_grad_()
    peer = torch.optim.AdamW(
        [theirs],
        lr=CONSTANTS["lr"],
        betas=(CONSTANTS["beta1"], CONSTANTS["beta2"]),
        eps=CONSTANTS["eps"],
        weight_decay=CONSTANTS["weight_decay"],
    )
    for grad in grads:
        theirs.grad = grad
        peer.step()
    if size == 0:
        assert ours.shape == (0,)
        return
    error = (theirs.detach().double() - exact).abs().max()
    rounding = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= 2 * error + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_copy_is_the_rounded_parameter(dtype):
    tensors, grads = state(1021)
    copy = torch.empty(1021, dtype=dtype)
    steps(adamw_step, tensors, grads, model_param=copy)
    assert torch.equal(copy, tensors[0].to(dtype))


def test_the_gradient_factor_scales_the_gradient():
    plain = steps(adamw_step, *state(333))
    tensors, grads = state(333)
    scaled = steps(adamw_step, tensors, [grad * 4.0 for grad in grads], grad_scale=0.25)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


def test_the_number_of_threads_does_not_change_a_bit():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(steps(adamw_step, *state(100_003)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_wrong_sizes_and_steps_are_named():
    param = torch.zeros(4)
    with pytest.raises(RuntimeError, match="grad"):
        adamw_step(param, torch.zeros(5), torch.zeros(4), torch.zeros(4), step=1, **CONSTANTS)
    with pytest.raises(RuntimeError, match="step"):
        adamw_step(param, torch.zeros(4), torch.zeros(4), torch.zeros(4), step=0, **CONSTANTS)

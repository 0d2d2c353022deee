"""Dropout with residual: the published random numbers, one mask everywhere, gradients, faults."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from megacore.ops.dropout_add import dropout_add, dropout_add_reference, random_words

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEEDS = [0, 1, -1, 2**63 - 1, 0x123456789]


def test_random_numbers_are_the_published_ones():
    # Known answer of Random123 for counter 0 and key 0.
    assert random_words(4, 0).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize(("dtype", "with_residual"), list(itertools.product(DTYPES, [False, True])))
def test_equals_the_reference(dtype, with_residual):
    for count, seed in itertools.product([1, 3, 4, 1021, 1024, 5000], SEEDS):
        x, residual = torch.randn(2, count).to(dtype)
        residual = residual if with_residual else None
        got = dropout_add(x, residual, drop=0.3, seed=seed)
        # One rounding of the same float32 numbers (a fused multiply-add has none between).
        want = dropout_add_reference(x, residual, drop=0.3, seed=seed)
        torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=2.0**-22)


def test_gradients_are_those_of_the_mask():
    x = torch.randn(7, 33, requires_grad=True)
    residual = torch.randn(7, 33, requires_grad=True)
    dout = torch.randn(7, 33)
    out = dropout_add(x, residual, drop=0.25, seed=5)
    out.backward(dout)
    dropped = (random_words(7 * 33, 5) >> 8 < 2**22).view(7, 33)
    want = (dout / 0.75).masked_fill(dropped, 0.0)
    torch.testing.assert_close(x.grad, want, rtol=2.0**-22, atol=0)
    assert torch.equal(x.grad == 0, dropped)
    assert torch.equal(residual.grad, dout)


def test_the_share_of_zeros():
    count, drop = 100_000, 0.1
    out = dropout_add(torch.ones(count), None, drop=drop, seed=42)
    # Five standard deviations of a binomial distribution.
    bound = 5 * math.sqrt(count * drop * (1 - drop))
    assert abs((out == 0).sum().item() - count * drop) <= bound


def test_ends_of_the_range():
    x = torch.tensor([1.0, float("nan"), float("inf")])
    assert dropout_add(x, None, drop=1.0, seed=3).tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(dropout_add(x[:1], x[:1], drop=0.0, seed=3), 2 * x[:1])
    assert dropout_add(torch.empty(0, 4), None, drop=0.5, seed=3).shape == (0, 4)


def test_the_number_of_threads_does_not_change_a_bit():
    x = torch.randn(100_003)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(dropout_add(x, x, drop=0.5, seed=9))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_reference_has_the_right_derivatives():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, r: dropout_add_reference(x, r, drop=0.4, seed=8), (x, residual)
    )


def test_faults():
    with pytest.raises(RuntimeError, match="drop: expected a probability"):
        dropout_add(torch.ones(3), None, drop=1.5, seed=0)
    with pytest.raises(RuntimeError, match="found residual: float32 \\[4\\]"):
        dropout_add(torch.ones(3), torch.ones(4), drop=0.5, seed=0)


def test_opcheck():
    x, residual = torch.randn(2, 4, 19).unbind(0)
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    torch.library.opcheck(torch.ops.megacore.dropout_add.default, (x, residual, 0.3, 7))
    torch.library.opcheck(torch.ops.megacore.dropout_add.default, (x, None, 0.3, 7))

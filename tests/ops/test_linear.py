"""Linear layers: values, gradients, and gradients of weights added straight into a sum."""

from __future__ import annotations

import pytest
import torch

from megacore.ops.linear import add_gradients_to, linear, linear_reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def leaves(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 5, 7), (11, 7), (11,)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_reference(dtype, with_bias):
    found, exact = leaves(dtype), [leaf.detach().double() for leaf in leaves(dtype)]
    for leaf in exact:
        leaf.requires_grad_()
    dy = torch.randn(2, 5, 11).to(dtype)
    y = linear(found[0], found[1], found[2] if with_bias else None)
    want = linear_reference(exact[0], exact[1], exact[2] if with_bias else None)
    y.backward(dy)
    want.backward(dy.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), want, rtol=2 * eps, atol=16 * eps)
    for leaf, other in zip(found[: 2 + with_bias], exact, strict=False):
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=2 * eps, atol=32 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weight_gradient_goes_into_the_sum(dtype):
    x, weight, bias = leaves(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = torch.ones(weight.shape, dtype=wide)
    told = []
    add_gradients_to(weight, total)
    weight.register_post_accumulate_grad_hook(told.append)
    dy = torch.randn(2, 5, 11).to(dtype)
    for _ in range(2):
        linear(x, weight, bias).backward(dy)
    assert weight.grad is None
    assert [param is weight for param in told] == [True, True]
    exact = 1 + 2 * torch.einsum("bso,bsi->oi", dy.double(), x.detach().double())
    # Products of two 16-bit numbers are exact in float32: only the sums are rounded there.
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_used_twice_is_complete_once():
    x, weight, _ = leaves(torch.float32)
    total, told = torch.zeros(weight.shape), []
    add_gradients_to(weight, total)
    weight.register_post_accumulate_grad_hook(lambda _: told.append(total.clone()))
    (linear(x, weight, None) + linear(x, weight, None)).sum().backward()
    assert len(told) == 1
    assert torch.equal(told[0], total)
    torch.testing.assert_close(total, 2 * x.detach().sum((0, 1)).expand_as(total))


def test_frozen_operands_get_no_gradient():
    x, weight, bias = leaves(torch.float32)
    add_gradients_to(weight, torch.zeros(weight.shape))
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    assert torch.equal(bias.grad, torch.full((11,), 10.0))


def test_gradients_that_lie_across():
    x, weight, _ = leaves(torch.bfloat16)
    dy = torch.randn(11, 2, 5).bfloat16().permute(1, 2, 0)
    linear(x, weight, None).backward(dy)
    straight = leaves(torch.bfloat16)
    linear(straight[0], straight[1], None).backward(dy.contiguous())
    torch.testing.assert_close(weight.grad, straight[1].grad)
    torch.testing.assert_close(x.grad, straight[0].grad)
    # A scalar that was expanded, as the gradient of a sum is.
    linear(x, weight, None).sum().backward()

"""Rotary embedding against float64: both pairings, partial heads, the fused split, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from megacore.ops.rotary import rotary, rotary_reference, rotary_split, rotary_split_reference

# B, S, G, R, D, half; heads of odd size, wholly and partly turned, and of sizes with vectors.
SHAPES = [
    (1, 1, 1, 1, 2, 1),
    (2, 3, 2, 3, 7, 2),
    (2, 5, 1, 1, 64, 32),
    (1, 17, 3, 2, 48, 12),
    (3, 4, 2, 1, 33, 16),
    (2, 70, 4, 2, 16, 8),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def angles(tokens, half, dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    turns = torch.rand(tokens, half, generator=generator, dtype=torch.float64) * 6.3
    return turns.cos().to(torch.float32).to(dtype), turns.sin().to(torch.float32).to(dtype)


def run(function, x, cos, sin, grads, interleaved):
    leaf = x.detach().clone().requires_grad_()
    outs = function(leaf, cos, sin, interleaved=interleaved)
    outs = outs if isinstance(outs, tuple) else (outs,)
    (grad,) = torch.autograd.grad(outs, leaf, grads)
    return [*(out.detach() for out in outs), grad]


def check(function, reference, x, grads, half, rows, interleaved):
    """Two float32 products, one sum and one rounding to the dtype."""
    exact = run(
        reference, x.double(), *angles(rows, half, torch.float64), [g.double() for g in grads],
        interleaved,
    )  # fmt: skip
    ours = run(function, x, *angles(rows, half), grads, interleaved)
    for want, got in zip(exact, ours, strict=True):
        assert got.dtype == x.dtype
        assert got.shape == want.shape
        rounding = torch.finfo(x.dtype).eps / 2 * want.abs()
        size = 4 * 2.0**-24 * max(x.abs().max().item(), 4.0)
        assert ((got.double() - want).abs() <= rounding + size).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "interleaved"), list(itertools.product(SHAPES, DTYPES, [False, True]))
)
def test_split(shape, dtype, interleaved):
    b, s, g, r, d, half = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(b, s, g, r + 2, d, generator=generator).to(dtype)
    outs = [torch.empty(b, s, g, r, d), torch.empty(b, s, g, d), torch.empty(b, s, g, d)]
    grads = [torch.randn(o.shape, generator=generator).to(dtype) for o in outs]
    for rows in (s, b * s):
        check(rotary_split, rotary_split_reference, qkv, grads, half, rows, interleaved)


@pytest.mark.parametrize(
    ("shape", "dtype", "interleaved"), list(itertools.product(SHAPES, DTYPES, [False, True]))
)
def test_heads(shape, dtype, interleaved):
    b, s, g, r, d, half = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, s, g * r, d, generator=generator).to(dtype)
    grads = [torch.randn(x.shape, generator=generator).to(dtype)]
    for rows in (s, b * s):
        check(rotary, rotary_reference, x, grads, half, rows, interleaved)


def test_pairs_are_complex_numbers():
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64)
    cos, sin = angles(3, 4, torch.float64)
    want = torch.view_as_complex(x.view(1, 3, 2, 4, 2)) * torch.complex(cos, sin)[:, None]
    got = rotary(x, cos, sin, interleaved=True)
    torch.testing.assert_close(got, torch.view_as_real(want).flatten(-2))
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    got = rotary(halves, cos, sin)
    torch.testing.assert_close(got, torch.cat((want.real, want.imag), dim=-1))


def test_no_lanes_and_no_tokens():
    x = torch.randn(2, 3, 1, 4)
    assert torch.equal(rotary(x, torch.empty(3, 0), torch.empty(3, 0)), x)
    q, k, v = rotary_split(torch.empty(2, 0, 1, 4, 8), *(torch.empty(0, 4),) * 2)
    assert q.shape == (2, 0, 1, 2, 8)
    assert k.shape == v.shape == (2, 0, 1, 8)


def test_tensors_that_are_not_contiguous_equal_their_copies():
    x = torch.randn(2, 3, 5, 16).transpose(1, 2)
    cos, sin = angles(5, 4)
    assert torch.equal(rotary(x, cos, sin), rotary(x.contiguous(), cos, sin))


def test_references_have_the_right_derivatives():
    qkv = torch.randn(2, 3, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    cos, sin = angles(3, 2, torch.float64)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, i=interleaved: rotary_split_reference(x, cos, sin, interleaved=i), (qkv,)
        )


def test_faults_name_the_tensor():
    cos, sin = angles(3, 4)
    with pytest.raises(RuntimeError, match="cos: float32 \\[3, 4\\]"):
        rotary(torch.randn(1, 4, 1, 8), cos, sin)
    with pytest.raises(RuntimeError, match="at most the 6 lanes"):
        rotary(torch.randn(1, 3, 1, 6), cos, sin)
    with pytest.raises(RuntimeError, match="sin"):
        rotary(torch.randn(1, 3, 1, 8), cos, sin[:, :3].contiguous())
    with pytest.raises(RuntimeError, match="qkv: expected"):
        rotary_split(torch.randn(1, 3, 1, 8), cos, sin)


@pytest.mark.parametrize("interleaved", [False, True])
def test_opcheck(interleaved):
    cos, sin = angles(3, 2)
    x = torch.randn(2, 3, 2, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.megacore.rotary_turn.default, (x, cos, sin, interleaved, False))
    qkv = torch.randn(2, 3, 2, 4, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.megacore.rotary_split.default, (qkv, cos, sin, interleaved))

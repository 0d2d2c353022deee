"""Activations with bias and gate against float64, on awkward shapes, with every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch

from megacore.ops.activation import ACTIVATIONS, activation, activation_reference

SHAPES = [(1, 2), (3, 14), (2, 5, 64), (13, 258), (301, 130), (1, 4096)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(shape, dtype, *, gated, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    bias = torch.randn(shape[-1:], generator=generator).to(dtype)
    inner = shape[-1] // 2 if gated else shape[-1]
    dout = torch.randn((*shape[:-1], inner), generator=generator).to(dtype)
    return x, bias, dout


def run(function, tensors, dout, *args, **kwargs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    x, bias = leaves if len(leaves) == 2 else (leaves[0], None)
    out = function(x, *args, bias=bias, **kwargs)
    out.backward(dout)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ("kind", "gated", "dtype"), list(itertools.product(ACTIVATIONS, [False, True], DTYPES))
)
def test_at_most_twice_the_error_of_pytorch(kind, gated, dtype):
    for shape, with_bias in itertools.product(SHAPES, [False, True]):
        x, bias, dout = inputs(shape, dtype, gated=gated)
        tensors = [x, bias] if with_bias else [x]
        wide = [tensor.double() for tensor in tensors]
        exact = run(activation_reference, wide, dout.double(), kind, gated=gated)
        theirs = run(activation_reference, tensors, dout, kind, gated=gated)
        ours = run(activation, tensors, dout, kind, gated=gated)
        for name, want, peer, got in zip(("out", "dx", "dbias"), exact, theirs, ours, strict=False):
            assert got.dtype == dtype
            assert got.shape == want.shape
            scale = want.abs().max().clamp(min=1.0)
            bound = 2 * (peer.double() - want).abs().max() + torch.finfo(dtype).eps * scale
            assert (got.double() - want).abs().max() <= bound, (name, shape, with_bias)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_far_values_and_values_that_are_not_finite(kind):
    x = torch.tensor([-1e4, -100.0, -30.0, -0.0, 0.0, 30.0, 100.0, 1e4, float("nan")])
    got, want = activation(x, kind), activation_reference(x, kind)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-6, atol=1e-30)
    assert activation(torch.tensor([float("inf")]), kind).item() == float("inf")


def test_tails_keep_their_relative_precision():
    x = -torch.linspace(1, 12, 200)
    want = x.double() * 0.5 * torch.special.erfc(-x.double() / 2**0.5)
    got = activation(x, "gelu_erf")
    # exp(-x^2 / 2) amplifies the rounding of its argument by x^2 / 2.
    bound = (x.double() ** 2 / 2 + 8) * 2.0**-23
    assert ((got.double() / want - 1).abs() <= bound).all()


@pytest.mark.parametrize(("kind", "gated"), list(itertools.product(ACTIVATIONS, [False, True])))
def test_references_have_the_right_derivatives(kind, gated):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, bias: activation_reference(x, kind, bias=bias, gated=gated), (x, bias)
    )


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0,)])
def test_empty_input(shape):
    x = torch.zeros(shape, requires_grad=True)
    bias = torch.ones(shape[-1], requires_grad=True)
    out = activation(x, "silu", bias=bias, gated=True)
    assert out.shape == (*shape[:-1], shape[-1] // 2)
    out.sum().backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_tensors_that_are_not_contiguous_equal_their_copies():
    x = torch.randn(9, 6).t().requires_grad_()
    copy = x.detach().contiguous().requires_grad_()
    dout = torch.randn(9, 6).t()
    activation(x, "gelu_tanh").backward(dout)
    activation(copy, "gelu_tanh").backward(dout.contiguous())
    assert torch.equal(x.grad, copy.grad)


def test_faults_name_the_tensor():
    with pytest.raises(RuntimeError, match="expected shape \\[5\\], found bias"):
        activation(torch.randn(3, 5), "silu", bias=torch.ones(4))
    with pytest.raises(RuntimeError, match="x: expected an even number of columns"):
        activation(torch.randn(3, 5), "silu", gated=True)
    with pytest.raises(RuntimeError, match="bias: float64"):
        activation(torch.randn(3, 5), "silu", bias=torch.ones(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="squared_relu"):
        activation(torch.randn(3, 5), "relu")


def test_the_number_of_threads_does_not_change_a_bit():
    x, bias, dout = inputs((301, 130), torch.float32, gated=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(activation, [x, bias], dout, "silu", gated=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("gated", "with_bias"), list(itertools.product([False, True], repeat=2)))
def test_opcheck(gated, with_bias):
    x, bias, _ = inputs((4, 18), torch.float32, gated=gated)
    arguments = (x.requires_grad_(), bias.requires_grad_() if with_bias else None, 0, gated)
    torch.library.opcheck(torch.ops.megacore.activation_forward.default, arguments)

"""LayerNorm and RMSNorm against float64, on awkward shapes, with every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from megacore.ops import library
from megacore.ops.norm import layer_norm, layer_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-5
# The last two have many rows: their weight gradients are long sums, which may lose more than a row.
SHAPES = [(1, 1), (3, 7), (2, 5, 64), (1, 257), (13, 384), (4, 1000), (301, 129), (700, 48)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 2 + 0.5).to(dtype)
    weight = torch.randn(shape[-1:], generator=generator).to(dtype)
    bias = torch.randn(shape[-1:], generator=generator).to(dtype)
    dy = torch.randn(shape, generator=generator).to(dtype)
    return x, weight, bias, dy


def run(function, tensors, dy):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    y.backward(dy)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def check(function, torch_function, shape, dtype, *, with_bias):
    """At most twice PyTorch's own error in this dtype, plus one rounding of the largest value."""
    x, weight, bias, dy = inputs(shape, dtype)
    tensors = [x, weight, bias] if with_bias else [x, weight]
    exact = run(torch_function, [t.double() for t in tensors], dy.double())
    theirs = run(torch_function, tensors, dy)
    ours = run(function, tensors, dy)
    for name, want, peer, got in zip(
        ("y", "dx", "dweight", "dbias"), exact, theirs, ours, strict=False
    ):
        assert got.dtype == dtype
        scale = want.abs().max().clamp(min=1.0)
        bound = 2 * (peer.double() - want).abs().max() + torch.finfo(dtype).eps * scale
        assert (got.double() - want).abs().max() <= bound, name


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_layer_norm(shape, dtype):
    check(
        lambda x, w, b: layer_norm(x, w, b, eps=EPS),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, EPS),
        shape,
        dtype,
        with_bias=True,
    )


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_rms_norm(shape, dtype):
    check(
        lambda x, w: rms_norm(x, w, eps=EPS),
        lambda x, w: F.rms_norm(x, x.shape[-1:], w, EPS),
        shape,
        dtype,
        with_bias=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_centred_weight_is_a_weight_less_one(dtype):
    x, weight, bias, _ = inputs((5, 33), torch.float32)
    weight = weight.to(dtype)
    plus_one = weight.float() + 1.0
    want = F.layer_norm(x.to(dtype).double(), (33,), plus_one.double(), bias.to(dtype).double())
    got = layer_norm(x.to(dtype), weight, bias.to(dtype), eps=EPS, zero_centered=True)
    bound = 4 * torch.finfo(dtype).eps * want.abs().max()
    assert (got.double() - want).abs().max() <= bound


def test_references_have_the_right_derivatives():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: layer_norm_reference(*t, eps=EPS, zero_centered=True), (x, weight, bias)
    )
    assert torch.autograd.gradcheck(lambda *t: rms_norm_reference(*t, eps=EPS), (x, weight))


def test_empty_input():
    x = torch.zeros(0, 8, requires_grad=True)
    y = layer_norm(x, torch.ones(8), torch.zeros(8), eps=EPS)
    assert y.shape == (0, 8)


def test_non_contiguous_input_equals_its_copy():
    x = torch.randn(9, 6).t()
    weight = torch.randn(9)
    assert torch.equal(rms_norm(x, weight, eps=EPS), rms_norm(x.contiguous(), weight, eps=EPS))


def test_wrong_shape_names_the_tensor():
    with pytest.raises(RuntimeError, match="weight"):
        rms_norm(torch.randn(3, 5), torch.ones(4), eps=EPS)


def test_the_number_of_threads_does_not_change_a_bit():
    x, weight, bias, dy = inputs((301, 129), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(lambda x, w, b: layer_norm(x, w, b, eps=EPS), [x, weight, bias], dy))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layer", [True, False], ids=["layer", "rms"])
def test_opcheck(layer):
    x, weight, bias, _ = inputs((4, 19), torch.float32)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    arguments = (*tensors[:2], tensors[2] if layer else None, EPS, False, layer)
    torch.library.opcheck(torch.ops.megacore.norm_forward.default, arguments)


def test_float32_weights_of_a_low_precision_input():
    x, weight, bias, dy = inputs((9, 37), torch.bfloat16)
    weight, bias = weight.float(), bias.float()
    ours = run(lambda *t: layer_norm(*t, eps=EPS), [x, weight, bias], dy)
    reference = run(lambda *t: layer_norm_reference(*t, eps=EPS), [x, weight, bias], dy)
    assert ours[2].dtype == torch.float32
    for got, want in zip(ours, reference, strict=True):
        torch.testing.assert_close(got, want)


def test_kernels_are_built():
    assert library.kernels_missing == ""
    assert library.has_kernel("norm_forward", "cpu")
    assert not library.has_kernel("norm_forward", "meta")

"""Attention of every formulation against a loop in float64."""

import math

import pytest
import torch

from megacore.layers.core_attention import cached_attention, causal_attention, packed_attention
from megacore.layers.dropout_attention import dropout_attention, keep_mask
from megacore.layers.score_attention import Scores
from megacore.testing.tolerance import expect_close, twice_torch_error

# batch, length, groups, query heads per group, width
SHAPES = [(1, 1, 1, 1, 1), (2, 17, 3, 1, 5), (3, 13, 2, 3, 8), (1, 33, 1, 4, 7)]


def _inputs(shape, dtype=torch.float64):
    torch.manual_seed(4)
    batch, length, groups, ratio, width = shape
    q = torch.randn(batch, length, groups, ratio, width, dtype=torch.float64)
    k, v = torch.randn(2, batch, length, groups, width, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v)]


def _reference(q, k, v, weights_of=lambda weights: weights):
    """One softmax per query, over the keys up to it."""
    length, width = q.shape[1], q.shape[-1]
    scores = torch.einsum("bsgrd,btgd->bgrst", q, k) / math.sqrt(width)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = weights_of(scores.masked_fill(hidden, float("-inf")).softmax(-1))
    return torch.einsum("bgrst,btgd->bsgrd", weights, v).flatten(2)


def _gradients(out, inputs):
    torch.manual_seed(5)
    return torch.autograd.grad(out, inputs, torch.randn(out.shape).to(out.dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layer_scale", [1, 3])
def test_causal(shape, layer_scale):
    inputs = _inputs(shape)
    out, exact = (
        causal_attention(*inputs, scores=Scores(layer_scale=layer_scale)),
        _reference(*inputs),
    )
    expect_close(out, exact, bound=1e-13)
    for found, wanted in zip(_gradients(out, inputs), _gradients(exact, inputs), strict=True):
        expect_close(found, wanted, bound=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_causal_in_low_precision(shape, dtype):
    low = _inputs(shape, dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in low]
    exact, plain, out = _reference(*exact_inputs), _reference(*low), causal_attention(*low)
    expect_close(out, exact, bound=twice_torch_error(plain, exact))


def test_packed_documents_do_not_see_each_other():
    inputs = _inputs((3, 13, 2, 3, 8))
    lengths = (5, 8, 1, 12, 13)
    out = packed_attention(*inputs, lengths)
    rows = out.flatten(0, 1).split(lengths)
    flat = [x.flatten(0, 1).split(lengths) for x in inputs]
    for found, *document in zip(rows, *flat, strict=True):
        expect_close(found, _reference(*(x[None] for x in document))[0], bound=1e-13)


@pytest.mark.parametrize("layer_scale", [1, 4])
def test_cached_rows_of_different_lengths(layer_scale):
    q, k, v = (x.detach() for x in _inputs((3, 13, 2, 3, 8)))
    exact = _reference(q, k, v)
    # Row b asks for its positions first[b], first[b] + 1; keys behind them hold garbage.
    first = torch.tensor([11, 3, 7])
    positions = first[:, None] + torch.arange(2)
    rows = torch.arange(3)[:, None]
    keys, values = k.transpose(1, 2).clone(), v.transpose(1, 2).clone()
    for row, start in enumerate(first.tolist()):
        keys[row, :, start + 2 :] = 1e3
        values[row, :, start + 2 :] = 1e3
    out = cached_attention(
        q[rows, positions], keys, values, positions, scores=Scores(layer_scale=layer_scale)
    )
    expect_close(out, exact[rows, positions], bound=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layer_scale", [1, 2])
def test_dropout_attention(shape, layer_scale):
    batch, length, groups, ratio, _ = shape
    inputs = _inputs(shape)
    torch.manual_seed(6)
    out = dropout_attention(*inputs, dropout=0.3, scores=Scores(layer_scale=layer_scale)).flatten(2)
    torch.manual_seed(6)
    rows = torch.Size([batch * groups, ratio * length, length])
    keep, probability = keep_mask(rows, 0.3)
    keep = keep.view(batch, groups, ratio, length, length)
    exact = _reference(*inputs, lambda weights: weights * keep / probability)
    # Layer scaling goes through float32 by design.
    bound = 1e-12 if layer_scale == 1 else 1e-5
    expect_close(out, exact, bound=bound)
    for found, wanted in zip(_gradients(out, inputs), _gradients(exact, inputs), strict=True):
        expect_close(found, wanted, bound=10 * bound)


def test_layer_scaling_keeps_half_precision_in_range():
    """Scores beyond the range of float16 overflow, unless they are computed smaller."""
    q, k, v = _inputs((1, 6, 1, 1, 64), torch.float16)
    with torch.no_grad():
        q.mul_(200.0)
        k.mul_(200.0)
    plain = dropout_attention(q, k, v, dropout=1e-9)
    assert plain.isnan().any()
    positions = torch.arange(6)[None]
    out = cached_attention(
        q, k.transpose(1, 2), v.transpose(1, 2), positions, scores=Scores(layer_scale=24)
    )
    assert out.isfinite().all()


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_keep_mask(drop):
    torch.manual_seed(7)
    shape = torch.Size([333, 301])
    keep, probability = keep_mask(shape, drop)
    assert keep.shape == shape
    # The stated probability is the drop rate rounded to 1/65536, and the share follows it.
    assert abs(probability - (1 - drop)) <= 0.5 / 65536
    deviation = math.sqrt(probability * (1 - probability) / keep.numel())
    assert abs(keep.double().mean().item() - probability) <= 5 * deviation
    # Neighbours, cut from the same 64 bits, are independent.
    pairs = (keep.flatten()[:-1] & keep.flatten()[1:]).double().mean().item()
    assert abs(pairs - probability**2) <= 5 * (2 * deviation + 1e-9)


def test_same_state_same_mask_and_another_next():
    torch.manual_seed(8)
    first, _ = keep_mask(torch.Size([10, 10]), 0.5)
    second, _ = keep_mask(torch.Size([10, 10]), 0.5)
    torch.manual_seed(8)
    assert torch.equal(first, keep_mask(torch.Size([10, 10]), 0.5)[0])
    assert not torch.equal(first, second)

"""Windows, caps and other scales of attention against one softmax per query in float64."""

import pytest
import torch

from megacore.layers import score_attention
from megacore.layers.core_attention import cached_attention, causal_attention, packed_attention
from megacore.layers.dropout_attention import dropout_attention, keep_mask
from megacore.layers.score_attention import Scores
from megacore.testing.tolerance import expect_close, twice_torch_error

# batch, length, groups, query heads per group, width
SHAPES = [(1, 1, 1, 1, 1), (2, 17, 3, 1, 5), (2, 37, 2, 3, 8)]
RULES = {
    "window of one": Scores(window=1),
    "window": Scores(window=5),
    "window and scale": Scores(window=4, scale=0.31),
    "wide window": Scores(window=100),
    "cap": Scores(softcap=0.7),
    "cap, window, scale, layers": Scores(softcap=1.3, window=6, scale=0.9, layer_scale=3),
    "scale": Scores(scale=1.7),
}


def _inputs(shape, dtype=torch.float64):
    torch.manual_seed(4)
    batch, length, groups, ratio, width = shape
    q = torch.randn(batch, length, groups, ratio, width, dtype=torch.float64)
    k, v = torch.randn(2, batch, length, groups, width, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v)]


def _reference(q, k, v, rule, weights_of=lambda weights: weights):
    length, width = q.shape[1], q.shape[-1]
    scale = width**-0.5 if rule.scale is None else rule.scale
    scores = torch.einsum("bsgrd,btgd->bgrst", q, k) * scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (rule.window or length))
    weights = weights_of(scores.masked_fill(hidden, float("-inf")).softmax(-1))
    return torch.einsum("bgrst,btgd->bsgrd", weights, v).flatten(2)


@pytest.mark.parametrize("min_rows", [1, 256])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RULES)
def test_causal(name, shape, min_rows, monkeypatch):
    monkeypatch.setattr(score_attention, "_MIN_ROWS", min_rows)
    rule, inputs = RULES[name], _inputs(shape)
    out, exact = causal_attention(*inputs, scores=rule), _reference(*inputs, rule)
    expect_close(out, exact, bound=1e-12)
    weights = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, weights)
    for got, wanted in zip(found, torch.autograd.grad(exact, inputs, weights), strict=True):
        expect_close(got, wanted, bound=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_low_precision(name, dtype):
    low = _inputs((2, 37, 2, 3, 8), dtype)
    exact = _reference(*(x.double() for x in low), RULES[name])
    plain = _reference(*low, RULES[name])
    out = causal_attention(*low, scores=RULES[name])
    assert out.dtype == dtype
    expect_close(out, exact, bound=twice_torch_error(plain, exact))


@pytest.mark.parametrize("name", RULES)
def test_documents_and_cache_agree_with_the_whole(name):
    rule, (q, k, v) = RULES[name], [x.detach() for x in _inputs((3, 13, 2, 3, 8))]
    lengths = (5, 8, 1, 12, 13)
    rows = packed_attention(q, k, v, lengths, scores=rule).flatten(0, 1).split(lengths)
    flat = [x.flatten(0, 1).split(lengths) for x in (q, k, v)]
    for found, *document in zip(rows, *flat, strict=True):
        expect_close(found, _reference(*(x[None] for x in document), rule)[0], bound=1e-12)
    exact = _reference(q, k, v, rule)
    keys, values = k.transpose(1, 2).clone(), v.transpose(1, 2).clone()
    last = cached_attention(q[:, -1:], keys, values, None, scores=rule)
    expect_close(last, exact[:, -1:], bound=1e-12)
    first = torch.tensor([11, 3, 7])
    positions, row = first[:, None] + torch.arange(2), torch.arange(3)[:, None]
    for index, start in enumerate(first.tolist()):
        keys[index, :, start + 2 :] = 1e3
        values[index, :, start + 2 :] = 1e3
    out = cached_attention(q[row, positions], keys, values, positions, scores=rule)
    expect_close(out, exact[row, positions], bound=1e-12)


def test_dropout_on_a_cpu_with_window_and_scale():
    rule, inputs = RULES["window and scale"], _inputs((2, 17, 3, 2, 5))
    torch.manual_seed(6)
    out = dropout_attention(*inputs, dropout=0.3, scores=rule).flatten(2)
    torch.manual_seed(6)
    keep, probability = keep_mask(torch.Size([6, 2 * 17, 17]), 0.3)
    keep = keep.view(2, 3, 2, 17, 17)
    exact = _reference(*inputs, rule, lambda weights: weights * keep / probability)
    expect_close(out, exact, bound=1e-12)
    weights = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, weights)
    for got, wanted in zip(found, torch.autograd.grad(exact, inputs, weights), strict=True):
        expect_close(got, wanted, bound=1e-11)


def test_capped_scores_are_dropped_at_the_given_rate():
    q, k, v = _inputs((1, 200, 1, 2, 4), torch.float32)
    torch.manual_seed(1)
    out = causal_attention(q, k, torch.ones_like(v), dropout=0.25, scores=Scores(softcap=2.0))
    # With values of one a row is the sum of the weights that were kept, over the share kept.
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert out.std() > 0.01

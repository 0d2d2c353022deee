"""Attention of all queries to the visible keys, and biases by distance, in float64."""

from __future__ import annotations

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from megacore.layers.full_attention import full_attention
from megacore.layers.relative_bias import distance_buckets
from megacore.layers.score_attention import Scores
from megacore.testing.tolerance import expect_close

BATCH, QUERIES, KEYS, GROUPS, RATIO, WIDTH = 2, 7, 11, 3, 2, 5


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def plain(q, k, v, visible, causal, bias, scale):
    """The definition, one matrix of scores for every head."""
    heads_k, heads_v = (x.repeat_interleave(RATIO, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.flatten(2, 3), heads_k) * scale
    if bias is not None:
        scores = scores + bias
    hidden = torch.zeros(scores.shape, dtype=torch.bool)
    if visible is not None:
        hidden |= ~visible[:, None, None]
    if causal:
        hidden |= torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, heads_v).flatten(2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradients_are_those_of_the_definition(padded, biased, causal):
    torch.manual_seed(3)
    keys = QUERIES if causal else KEYS
    q, k = draw(BATCH, QUERIES, GROUPS, RATIO, WIDTH), draw(BATCH, keys, GROUPS, WIDTH)
    v = draw(BATCH, keys, GROUPS, WIDTH)
    bias = draw(GROUPS * RATIO, QUERIES, keys) if biased else None
    visible = torch.arange(keys) < torch.tensor([[keys], [4]]) if padded else None
    inputs = [x.requires_grad_() for x in (q, k, v, bias) if x is not None]
    grad = draw(BATCH, QUERIES, GROUPS * RATIO * WIDTH)
    expected = plain(q, k, v, visible, causal, bias, 0.3)
    wanted = torch.autograd.grad(expected, inputs, grad)
    found = full_attention(
        q, k, v, visible=visible, causal=causal, bias=bias,
        scores=Scores(scale=0.3, layer_scale=4),
    )  # fmt: skip
    expect_close(found, expected, bound=1e-12)
    for one, other in zip(torch.autograd.grad(found, inputs, grad), wanted, strict=True):
        expect_close(one, other, bound=1e-12)


def test_dropout_keeps_the_mean_and_never_shows_padding():
    torch.manual_seed(3)
    q, k = draw(1, 4, 1, 1, WIDTH), draw(1, KEYS, 1, WIDTH)
    v = torch.ones(1, KEYS, 1, WIDTH, dtype=torch.float64)
    v[:, 6:] = 1e6
    visible = torch.arange(KEYS)[None] < 6
    draws = [full_attention(q, k, v, visible=visible, dropout=0.4) for _ in range(2000)]
    mean = torch.stack(draws).mean()
    # Weights of 6 keys: the deviation of one draw is below sqrt(0.4 / 0.6).
    assert abs(mean.item() - 1.0) < 5 * (0.4 / 0.6) ** 0.5 / (2000 * 4) ** 0.5


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (10, 13), (6, 9)])
def test_buckets_are_those_of_transformers(bidirectional, buckets, distance):
    length = 300
    places = torch.arange(length)
    expected = T5Attention._relative_position_bucket(
        places[None] - places[:, None],
        bidirectional=bidirectional,
        num_buckets=buckets,
        max_distance=distance,
    )
    found = distance_buckets(
        length, num_buckets=buckets, max_distance=distance, bidirectional=bidirectional
    )
    assert torch.equal(found, expected)

"""Attention of the model by megacore's kernel, against the formulations for float64."""

import pytest
import torch

from megacore.layers.core_attention import cached_attention, causal_attention, packed_attention
from megacore.layers.native_attention import are_consecutive, kernel_takes
from megacore.layers.score_attention import Scores
from megacore.ops.attention import attention_reference

RULES = [Scores(), Scores(window=5, scale=0.3, layer_scale=3)]


def inputs(shape=(2, 19, 3, 2, 16)):
    torch.manual_seed(3)
    q = torch.randn(shape)
    k, v = torch.randn(2, *shape[:3], shape[4])
    return [x.requires_grad_() for x in (q, k, v)]


def gradients(out, leaves):
    torch.manual_seed(4)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))


def expect_equal(function, leaves):
    wide = [x.detach().double().requires_grad_() for x in leaves]
    out, exact = function(*leaves), function(*wide)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(out, leaves), gradients(exact, wide), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_what_is_taken():
    assert kernel_takes(torch.zeros(1, 256, dtype=torch.bfloat16))
    assert not kernel_takes(torch.zeros(1, 257))
    assert not kernel_takes(torch.zeros(1, 8, dtype=torch.float64))
    assert not kernel_takes(torch.zeros(1, 8, device="meta"))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_causal(rule):
    expect_equal(lambda *x: causal_attention(*x, scores=rule), inputs())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_packed(rule):
    lengths = (1, 20, 17)
    expect_equal(lambda *x: packed_attention(*x, lengths, scores=rule), inputs())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_cached(rule):
    q, k, v = (x.detach() for x in inputs())
    first = torch.tensor([13, 4])
    rows, keys, values = q[:, :3], k.transpose(1, 2), v.transpose(1, 2)
    for positions in (first[:, None] + torch.arange(3), first[:, None] + torch.tensor([0, 2, 1])):
        assert are_consecutive(positions) == (positions[0].tolist() == [13, 14, 15])
        out = cached_attention(rows, keys, values, positions, scores=rule)
        exact = cached_attention(
            rows.double(), keys.double(), values.double(), positions, scores=rule
        )
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    out = cached_attention(rows[:, :1].bfloat16(), keys.bfloat16(), values.bfloat16(), None)
    exact = cached_attention(rows[:, :1].double(), keys.double(), values.double(), None)
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)


def test_dropout_draws_its_seed_from_the_generator():
    leaves = inputs()
    torch.manual_seed(9)
    out = causal_attention(*leaves, dropout=0.3)
    other = causal_attention(*leaves, dropout=0.3)
    torch.manual_seed(9)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    expected, _ = attention_reference(*leaves, causal=True, drop=0.3, seed=seed)
    torch.testing.assert_close(out, expected.flatten(2), rtol=1e-5, atol=1e-5)
    assert not torch.equal(out, other)
    got = gradients(out, leaves)
    for mine, want in zip(got, gradients(expected.flatten(2), leaves), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)

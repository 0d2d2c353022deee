"""Attention against float64: masks, groups, dropout, caches, gradients, parts put together."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from megacore.ops.attention import (
    _reference_backward,
    attention,
    attention_backward,
    attention_reference,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

PARTS = (slice(0, 17), slice(17, 50))

# Shape as batch, queries, keys, groups, query heads of a group, head size; and the rule.
CASES = {
    "one": ((1, 1, 1, 1, 1, 32), {"causal": True}),
    "causal": ((2, 67, 67, 2, 1, 40), {"causal": True}),
    "full": ((1, 31, 130, 2, 2, 64), {"causal": False}),
    "window": ((1, 140, 140, 1, 3, 32), {"causal": True, "window": 13}),
    "more queries than keys": ((1, 40, 9, 1, 1, 33), {"causal": True}),
    "documents": (
        (1, 90, 90, 2, 1, 48),
        {"causal": True, "documents": torch.tensor([0, 1, 40, 40, 90])},
    ),
    "cache": (
        (3, 2, 70, 2, 2, 32),
        {"causal": True, "key_lengths": torch.tensor([70, 1, 33]), "scale": 0.3},
    ),
    "dropout": ((2, 33, 45, 1, 2, 32), {"causal": False, "drop": 0.25, "seed": 11}),
    "large heads": ((1, 20, 20, 1, 1, 256), {"causal": True}),
}


def inputs(shape, dtype, seed=0):
    batch, queries, keys, groups, ratio, width = shape
    generator = torch.Generator().manual_seed(seed)

    def new(*sizes):
        return torch.randn(sizes, generator=generator).to(dtype)

    q = new(batch, queries, groups, ratio, width)
    k, v = (new(batch, keys, groups, width) for _ in range(2))
    return q, k, v, new(batch, queries, groups, ratio, width)


def run(function, q, k, v, dout, **rule):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, log_sum = function(*leaves, **rule)
    out.backward(dout)
    return out.detach(), log_sum.detach(), *(x.grad for x in leaves)


class PlainAttention(torch.autograd.Function):
    """The op's own formulas in plain PyTorch, gradients from the rounded output."""

    @staticmethod
    def forward(ctx, q, k, v, rule):
        out, log_sum = attention_reference(q, k, v, **rule)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.rule = rule
        return out, log_sum

    @staticmethod
    def backward(ctx, dout, _):
        rule = ctx.rule
        settings = (
            rule.get("documents"),
            rule.get("key_lengths"),
            rule["causal"],
            rule.get("window", 0),
            rule.get("scale", ctx.saved_tensors[0].shape[-1] ** -0.5),
            rule.get("drop", 0.0),
            rule.get("seed", 0),
        )
        return *_reference_backward(dout, *ctx.saved_tensors, *settings), None


@pytest.mark.parametrize(("dtype", "name"), list(itertools.product(DTYPES, CASES)), ids=str)
def test_at_most_twice_the_error_of_pytorch(dtype, name):
    shape, rule = CASES[name]
    q, k, v, dout = inputs(shape, dtype)
    exact = run(attention_reference, *(x.double() for x in (q, k, v, dout)), **rule)
    theirs = run(lambda *x, **rule: PlainAttention.apply(*x, rule), q, k, v, dout, **rule)
    ours = run(attention, q, k, v, dout, **rule)
    # A gradient is a sum of differences of products of a row of dout, and may be 0.
    products = torch.einsum("bigrd,bjgd->bgrij", dout.abs().double(), v.abs().double()).max()
    terms = products * torch.stack([q.abs().max(), k.abs().max()]).max().double()
    for got, peer, want in zip(ours, theirs, exact, strict=True):
        assert torch.equal(got.isinf(), want.isinf())
        rounding = torch.finfo(got.dtype).eps / 2
        wide = [x.double().nan_to_num(neginf=0.0) for x in (got, peer, want)]
        error, peer_error = ((x - wide[2]).abs().max() for x in wide[:2])
        assert error <= 2 * peer_error + 2 * rounding * wide[2].abs().max() + 2.0**-23 * terms


def test_equals_the_kernels_of_pytorch():
    q, k, v, dout = inputs((2, 129, 129, 3, 1, 64), torch.float32)
    ours = run(attention, q, k, v, dout, causal=True)

    def sdpa(q, k, v):
        heads = (x.transpose(1, 2) for x in (q[:, :, :, 0], k, v))
        out = F.scaled_dot_product_attention(*heads, is_causal=True)
        return out.transpose(1, 2)[:, :, :, None], torch.zeros(1)

    theirs = run(sdpa, q, k, v, dout)
    for number in (0, 2, 3, 4):
        torch.testing.assert_close(ours[number], theirs[number], rtol=1e-4, atol=1e-5)


def test_packed_projections_are_taken_as_they_lie():
    qkv = torch.randn(2, 21, 3, 4, 40, requires_grad=True)
    dout = torch.randn(2, 21, 3, 2, 40)

    def split(x):
        return x[:, :, :, :2], x[:, :, :, 2], x[:, :, :, 3]

    out, _ = attention(*split(qkv), causal=True)
    out.backward(dout)
    whole = run(attention, *(x.contiguous() for x in split(qkv.detach())), dout, causal=True)
    assert torch.equal(out, whole[0])
    for got, want in zip(split(qkv.grad), whole[2:], strict=True):
        assert torch.equal(got, want)


def test_parts_of_the_keys_put_together():
    q, k, v, dout = inputs((1, 30, 50, 2, 2, 32), torch.float32)
    whole = run(attention, q, k, v, dout, causal=False)
    outs, sums = zip(
        *(attention(q, k[:, part], v[:, part], causal=False) for part in PARTS), strict=True
    )
    total = torch.logaddexp(*sums)
    joined = sum(out * (own - total).exp()[..., None] for out, own in zip(outs, sums, strict=True))
    torch.testing.assert_close(joined, whole[0])
    torch.testing.assert_close(total, whole[1])
    gradients = [
        attention_backward(dout, q, k[:, part], v[:, part], whole[0], whole[1], causal=False)
        for part in PARTS
    ]
    torch.testing.assert_close(gradients[0][0] + gradients[1][0], whole[2])
    for number in (1, 2):
        found = torch.cat([gradient[number] for gradient in gradients], dim=1)
        torch.testing.assert_close(found, whole[2 + number])


def test_the_number_of_threads_does_not_change_a_bit():
    before = torch.get_num_threads()
    for shape in ((1, 300, 300, 3, 1, 32), (1, 3, 1500, 1, 2, 32), (1, 40, 2100, 1, 1, 32)):
        q, k, v, dout = inputs(shape, torch.float32)
        results = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(run(attention, q, k, v, dout, causal=True, drop=0.1, seed=3))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_reference_has_the_right_derivatives():
    q, k, v, _ = (x.requires_grad_() for x in inputs((1, 3, 4, 1, 2, 5), torch.float64))
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x, causal=True, window=3, drop=0.3, seed=5)[0], (q, k, v)
    )


def test_nothing_to_do():
    q, k, v, dout = inputs((2, 0, 5, 1, 1, 8), torch.float32)
    out, _, dq, dk, dv = run(attention, q, k, v, dout, causal=False)
    assert out.shape == q.shape
    assert torch.equal(dk, torch.zeros_like(k))
    assert torch.equal(dv, torch.zeros_like(v))
    q, k, v, dout = inputs((1, 3, 0, 1, 1, 8), torch.float32)
    out, log_sum, dq, *_ = run(attention, q, k, v, dout, causal=False)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(dq, torch.zeros_like(q))
    assert log_sum.eq(float("-inf")).all()


def test_faults():
    q, k, v, _ = inputs((1, 3, 4, 2, 1, 8), torch.float32)
    with pytest.raises(RuntimeError, match=r"found k: float32 \[1, 4, 1, 8\]"):
        attention(q, k[:, :, :1], v, causal=True)
    with pytest.raises(RuntimeError, match="found v: bfloat16"):
        attention(q, k, v.bfloat16(), causal=True)
    with pytest.raises(RuntimeError, match="window: only with causal"):
        attention(q, k, v, causal=False, window=3)
    with pytest.raises(RuntimeError, match="drop: expected a probability"):
        attention(q, k, v, causal=True, drop=-1.0)
    with pytest.raises(RuntimeError, match="documents: expected cumulative lengths"):
        attention(q, k, v, causal=True, documents=torch.tensor([0, 4]))
    with pytest.raises(RuntimeError, match="heads of 1 to 256 elements"):
        attention(*inputs((1, 1, 1, 1, 1, 257), torch.float32)[:3], causal=True)


def test_opcheck():
    q, k, v, _ = (x.requires_grad_() for x in inputs((1, 5, 5, 1, 2, 8), torch.float32))
    rule = (torch.tensor([0, 2, 5]), None, True, 3, 0.5, 0.1, 7)
    torch.library.opcheck(torch.ops.megacore.attention_forward.default, (q, k, v, *rule))

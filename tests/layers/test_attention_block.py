"""Blocks of attention against one softmax over everything, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megacore.layers import attention_block as module
from megacore.layers.attention_block import (
    BlockDropout,
    attention_block,
    attention_block_backward,
    merge_block,
)
from megacore.layers.dropout_attention import keep_mask
from megacore.testing.tolerance import expect_close, rms_error

BATCH, GROUPS, WIDTH = 2, 3, 14
ROUNDING = 1e-12


def inputs(queries: int, keys: int, ratio: int, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Parts of one product, as the layers give them, and a gradient."""
    generator = torch.Generator().manual_seed(queries + 100 * keys)
    length = max(queries, keys)
    shape = (BATCH, length, GROUPS, ratio + 2, WIDTH)
    together = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    q, k, v = together.split((ratio, 1, 1), dim=3)
    grad = torch.randn(BATCH, queries, GROUPS, ratio, WIDTH, generator=generator).to(dtype)
    return q[:, :queries], k[:, :keys, :, 0], v[:, :keys, :, 0], grad


def reference(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, keep: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Output and log-sum for `visible` [Sq, Sk]; `keep` multiplies weights [B, G, R, Sq, Sk]."""
    scores = torch.einsum("bqgrd,bkgd->bgrqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible, float("-inf"))
    out = torch.einsum("bgrqk,bkgd->bqgrd", scores.softmax(-1) * keep, v)
    return out, scores.logsumexp(-1).movedim(3, 1)


@pytest.fixture(params=["fused", "explicit", "explicit in pieces"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fused":
        return

    def explicit_forward(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
        return module._explicit(q, k, v, causal, None)

    def explicit_backward(*arguments: Any, causal: bool) -> Any:
        return module._explicit_backward(*arguments, causal, None)

    if request.param == "explicit in pieces":
        monkeypatch.setattr(module, "_MAX_SCORES", 700)
    monkeypatch.setattr("test_attention_block.attention_block", explicit_forward)
    monkeypatch.setattr("test_attention_block.attention_block_backward", explicit_backward)


def run_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, cuts: list[int]
) -> tuple[Tensor, ...]:
    """Causal attention of the last block of tokens and its gradients, key block after block."""
    out = log_sum = None
    blocks = list(itertools.pairwise(cuts))[::-1]
    for first, last in blocks:
        part = slice(first, last)
        block = attention_block(q, k[:, part], v[:, part], causal=last == cuts[-1])
        if out is None or log_sum is None:
            out, log_sum = (x.to(module.accumulation_dtype(q)).clone() for x in block)
        else:
            merge_block(out, log_sum, block)
    assert out is not None
    assert log_sum is not None
    final = out.to(q.dtype)
    d_q = torch.zeros(q.shape, dtype=out.dtype)
    d_k, d_v = torch.zeros(k.shape, dtype=out.dtype), torch.zeros(k.shape, dtype=out.dtype)
    for first, last in blocks:
        part = slice(first, last)
        part_q, part_k, part_v = attention_block_backward(
            grad, q, k[:, part], v[:, part], final, log_sum, causal=last == cuts[-1]
        )
        d_q += part_q
        d_k[:, part] += part_k
        d_v[:, part] += part_v
    return final, log_sum, d_q, d_k, d_v


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("cuts", [[0, 7], [0, 1, 8], [0, 5, 6, 40], [0, 64, 192]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_make_the_whole(dtype: torch.dtype, cuts: list[int], ratio: int) -> None:
    queries, keys = cuts[-1] - cuts[-2], cuts[-1]
    q, k, v, grad = inputs(queries, keys, ratio, dtype=dtype)
    found = run_in_blocks(q, k, v, grad, cuts)

    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    out, log_sum = reference(*leaves, visible)
    out.backward(grad.double())
    wanted = [out, log_sum, *(x.grad for x in leaves)]
    names = ("out", "log_sum", "d_q", "d_k", "d_v")
    if dtype == torch.float64:
        for name, x, y in zip(names, found, wanted, strict=True):
            expect_close(x, y, bound=ROUNDING, name=name)
        return
    plain = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    plain_out, plain_sum = reference(*plain, visible)
    plain_out.backward(grad)
    for name, x, y, own in zip(
        names, found, wanted, [plain_out, plain_sum, *(p.grad for p in plain)], strict=True
    ):
        rounding = torch.finfo(dtype).eps * y.square().mean().sqrt().item()
        assert rms_error(x, y) <= 2 * max(rms_error(own, y), rounding / 2), name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ratio", [1, 3])
def test_dropout(ratio: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = (11, 11) if causal else (5, 9)
    q, k, v, grad = inputs(queries, keys, ratio, dtype=torch.float64)
    dropout = BlockDropout(drop=0.3, seed=17)
    out, log_sum = attention_block(q, k, v, causal=causal, dropout=dropout)
    gradients = attention_block_backward(
        grad, q, k, v, out, log_sum, causal=causal, dropout=dropout
    )

    generator = torch.Generator().manual_seed(17)
    shape = torch.Size((BATCH * GROUPS, ratio * queries, keys))
    mask, kept = keep_mask(shape, 0.3, generator)
    assert 0.6 < mask.double().mean() < 0.8
    keep = mask.double().view(BATCH, GROUPS, ratio, queries, keys) / kept
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    visible = torch.ones(queries, keys, dtype=torch.bool)
    wanted, wanted_sum = reference(*leaves, visible.tril() if causal else visible, keep)
    wanted.backward(grad)
    expect_close(out, wanted, bound=ROUNDING, name="out")
    expect_close(log_sum, wanted_sum, bound=ROUNDING, name="log_sum")
    for name, x, leaf in zip("qkv", gradients, leaves, strict=True):
        assert leaf.grad is not None
        expect_close(x, leaf.grad, bound=ROUNDING, name=f"d_{name}")

    again = attention_block(q, k, v, causal=causal, dropout=dropout)
    assert torch.equal(again[0], out)
    other = attention_block(q, k, v, causal=causal, dropout=BlockDropout(drop=0.3, seed=18))
    assert not torch.equal(other[0], out)
    nothing = attention_block(q, k, v, causal=causal, dropout=BlockDropout(drop=1.0, seed=1))
    assert nothing[0].abs().max() == 0


def test_gpu_kernel_is_called_with_what_it_takes() -> None:
    """On the meta device: shapes and arguments, not values."""
    q = torch.empty(2, 6, 3, 4, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(2, 10, 3, 16, dtype=torch.bfloat16, device="meta")
    out, log_sum = attention_block(q, k, k, causal=False)
    assert (out.shape, log_sum.shape, log_sum.dtype) == (q.shape, q.shape[:-1], torch.float32)
    d_q, d_k, d_v = attention_block_backward(q, q, k, k, out, log_sum, causal=False)
    assert (d_q.shape, d_k.shape, d_v.shape) == (q.shape, k.shape, k.shape)

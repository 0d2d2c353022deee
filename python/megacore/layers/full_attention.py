"""Attention in which every query sees every real key, or has a bias on its scores.

For encoders, for the attention of a decoder to an encoder, and for relative position biases. Rows
of a batch are padded: a query sees the first `lengths[b]` keys of its row, given as a mask of keys,
[B, Sk], so no mask of size S x S exists. What padded queries give has no meaning, and is finite.

Which formulation is taken where:

* without bias, and without dropout or on a GPU: `scaled_dot_product_attention`;
* otherwise: explicit products. They hold the attention weights of all heads, [B * G, R * Sq, Sk],
  and one byte of dropout mask for each, from forward to backward (selective recompute frees them);
  scores are rounded to the dtype of q and k before the softmax, which computes in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.layers.dropout_attention import keep_mask
from megacore.layers.score_attention import PLAIN, Scores


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scores: Scores = PLAIN,
) -> Tensor:
    """Attention of all queries to the visible keys.

    Args:
        q: [B, Sq, G, R, D], R query heads per key/value head.
        k: [B, Sk, G, D].
        v: [B, Sk, G, D].
        visible: [B, Sk] bool, the keys that the queries of a row see; at least one in each row.
            None: all.
        causal: Query i sees keys 0 to i only (Sq = Sk).
        bias: [G * R, Sq, Sk] added to the scores of each head, or None.
        dropout: Drop probability of attention weights (0 outside training).
        scores: Scale; no cap and no window.

    Returns:
        [B, Sq, G * R * D].
    """
    batch, length, groups, ratio, width = q.shape
    # The query heads of a group stand below each other: its keys are shared without copies.
    rows = q.permute(0, 2, 3, 1, 4).reshape(batch, groups, ratio * length, width)
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    hidden = _hidden(visible, length, causal, q.device)
    if bias is None and (dropout == 0.0 or q.device.type != "cpu"):
        if hidden is not None and causal:
            hidden = hidden.repeat(1, 1, ratio, 1)
        out = F.scaled_dot_product_attention(
            rows,
            keys,
            values,
            attn_mask=None if hidden is None else ~hidden,
            dropout_p=dropout,
            scale=scores.factor(width),
        )
    else:
        result = _WeightsAttention.apply(rows, keys, values, bias, hidden, dropout, scores, ratio)
        assert isinstance(result, Tensor)
        out = result
    out = out.view(batch, groups, ratio, length, width).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, groups * ratio * width)


def _hidden(
    visible: Tensor | None, length: int, causal: bool, device: torch.device
) -> Tensor | None:
    """Which keys a query does not see: bool, broadcasts to [B, heads, Sq, Sk]; None: sees all."""
    hidden = None if visible is None else ~visible[:, None, None]
    if not causal:
        return hidden
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)[None, None]
    return later if hidden is None else later | hidden


class _WeightsAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        hidden: Tensor | None,
        drop: float,
        scores: Scores,
        ratio: int,
    ) -> Tensor:
        batch, groups, count, width = rows.shape
        length = keys.shape[2]
        scale, layer_scale = scores.factor(width), scores.layer_scale
        rows, keys, values = (x.reshape(batch * groups, -1, width) for x in (rows, keys, values))
        found = torch.bmm(rows * (scale / layer_scale), keys.transpose(1, 2))
        if layer_scale != 1:
            found = found.to(_wide(found)).mul_(layer_scale).to(rows.dtype)
        by_head = found.view(batch, groups * ratio, count // ratio, length)
        if bias is not None:
            by_head.add_(bias)
        if hidden is not None:
            by_head.masked_fill_(hidden, float("-inf"))
        weights = found.softmax(-1)
        keep, rescale, dropped = None, 1.0, weights
        if drop > 0.0:
            keep, kept = keep_mask(weights.shape, drop)
            rescale = 1.0 / kept if kept > 0.0 else 0.0
            dropped = (weights * keep.to(weights.device)).mul_(rescale)
        ctx.save_for_backward(rows, keys, values, weights, keep)
        ctx.shape, ctx.rescale, ctx.scale = (batch, groups, ratio), rescale, scale
        ctx.bias_dtype = None if bias is None else bias.dtype
        return torch.bmm(dropped, values).view(batch, groups, count, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, values, weights, keep = ctx.saved_tensors
        batch, groups, ratio = ctx.shape
        grad = grads[0].reshape(rows.shape)
        dropped = weights if keep is None else (weights * keep).mul_(ctx.rescale)
        d_values = torch.bmm(dropped.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, values.transpose(1, 2))
        if keep is not None:
            d_weights.mul_(keep).mul_(ctx.rescale)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        # The two layer factors cancel in the gradient.
        d_rows = torch.bmm(d_scores, keys).mul_(ctx.scale)
        d_keys = torch.bmm(d_scores.transpose(1, 2), rows).mul_(ctx.scale)
        d_bias = None
        if ctx.bias_dtype is not None:
            length = keys.shape[1]
            by_head = d_scores.view(batch, groups * ratio, -1, length)
            d_bias = by_head.sum(0, dtype=_wide(by_head)).to(ctx.bias_dtype)
        shape = (batch, groups, -1, rows.shape[-1])
        grads_of = (d_rows.view(shape), d_keys.view(shape), d_values.view(shape), d_bias)
        return (*grads_of, None, None, None, None)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32

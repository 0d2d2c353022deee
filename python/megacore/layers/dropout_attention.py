"""Causal attention with dropout on a CPU, where PyTorch's fused kernel has none.

Holds the attention weights of all heads, [B * G, R * S, S], and one byte of dropout mask for
each, from forward to backward; selective recompute frees them. Scores are rounded to the dtype of
q and k before the softmax, which computes in float32.

Random bits are drawn 64 at a time and cut into four 16-bit thresholds: eight times as fast as
PyTorch's Bernoulli sampler, with a drop probability that is a multiple of 1/65536.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megacore.layers.score_attention import PLAIN, Scores, visible_keys

_LEVELS = 1 << 16


def keep_mask(
    shape: torch.Size, drop: float, generator: torch.Generator | None = None
) -> tuple[Tensor, float]:
    """A random mask, and the probability of True.

    Args:
        shape: Shape of the mask.
        drop: Probability of False, rounded to a multiple of 1/65536.
        generator: Where random bits come from, and the device of the mask; PyTorch's default CPU
            generator when not given.
    """
    dropped_levels = min(max(round(drop * _LEVELS), 0), _LEVELS)
    count = math.prod(shape)
    device = torch.device("cpu") if generator is None else generator.device
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    bits.random_(-(2**63), None, generator=generator)
    # Signed 16-bit lanes run from -32768; the lowest `dropped_levels` of them drop.
    levels = bits.view(torch.int16)[:count].view(shape)
    keep_probability = 1.0 - dropped_levels / _LEVELS
    if dropped_levels == _LEVELS:
        return torch.zeros(shape, dtype=torch.bool, device=device), 0.0
    return levels >= dropped_levels - _LEVELS // 2, keep_probability


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, drop: float, scores: Scores) -> Tensor:
        batch, length, groups, ratio, width = q.shape
        scale = scores.factor(width)
        rows = q.permute(0, 2, 3, 1, 4).reshape(batch * groups, ratio * length, width)
        keys = k.transpose(1, 2).reshape(batch * groups, length, width)
        values = v.transpose(1, 2).reshape(batch * groups, length, width)
        places = torch.arange(length)
        hidden = ~visible_keys(places, places, scores.window)
        bias = torch.zeros(length, length, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
        bias = bias.repeat(ratio, 1).expand(batch * groups, -1, -1)
        layer_scale = scores.layer_scale
        found = torch.baddbmm(bias, rows, keys.transpose(1, 2), alpha=scale / layer_scale)
        if layer_scale != 1:
            found = found.float().mul_(layer_scale).to(q.dtype)
        weights = found.softmax(-1)
        keep, keep_probability = keep_mask(weights.shape, drop)
        rescale = 1.0 / keep_probability if keep_probability > 0.0 else 0.0
        out = torch.bmm((weights * keep).mul_(rescale), values)
        ctx.save_for_backward(rows, keys, values, weights, keep)
        ctx.shape, ctx.rescale, ctx.scale = q.shape, rescale, scale
        return out.view(batch, groups, ratio, length, width).permute(0, 3, 1, 2, 4)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, keys, values, weights, keep = ctx.saved_tensors
        batch, length, groups, ratio, width = ctx.shape
        grad = grads[0].permute(0, 2, 3, 1, 4).reshape(rows.shape)
        dropped = (weights * keep).mul_(ctx.rescale)
        d_values = torch.bmm(dropped.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, values.transpose(1, 2)).mul_(keep).mul_(ctx.rescale)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        # The two layer factors cancel in the gradient.
        d_rows = torch.bmm(d_scores, keys).mul_(ctx.scale)
        d_keys = torch.bmm(d_scores.transpose(1, 2), rows).mul_(ctx.scale)
        d_q = d_rows.view(batch, groups, ratio, length, width).permute(0, 3, 1, 2, 4)
        shape = (batch, groups, length, width)
        d_k, d_v = d_keys.view(shape).transpose(1, 2), d_values.view(shape).transpose(1, 2)
        return d_q, d_k, d_v, None, None


def dropout_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float, scores: Scores = PLAIN
) -> Tensor:
    """Causal attention on a CPU, dropping attention weights.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        dropout: Drop probability.
        scores: Scale and window; no cap.

    Returns:
        [B, S, G, R, D].
    """
    result = _DropoutAttention.apply(q, k, v, dropout, scores)
    assert isinstance(result, Tensor)
    return result

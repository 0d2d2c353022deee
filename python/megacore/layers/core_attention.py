"""softmax(q k^T / sqrt(D)) v for causal, packed and cached attention; no parameters.

Which formulation is taken where:

* causal without dropout, or on a GPU: `scaled_dot_product_attention`, which never holds the S x S
  scores and keeps them in float32;
* causal with dropout on a CPU: `dropout_attention`;
* packed documents: one causal call per document, so nothing of size S x S spans the batch;
* cached keys: explicit products of the few new queries with all keys.

The softmax is computed in float32 everywhere, whatever the dtype of q, k and v. The fused kernels
keep the scores in float32 too, so there the query/key layer scaling has nothing to protect: its
two factors cancel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.errors import UsageError
from megacore.layers.dropout_attention import dropout_attention


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, layer_scale: int = 1
) -> Tensor:
    """Causal attention with grouped heads.

    Args:
        q: [B, S, G, R, D], R query heads per key/value head.
        k: [B, S, G, D].
        v: [B, S, G, D].
        dropout: Drop probability of attention weights (0 outside training).
        layer_scale: Scores are computed this many times smaller and multiplied back in float32.

    Returns:
        [B, S, G * R * D].
    """
    batch, length, groups, ratio, width = q.shape
    if dropout > 0.0 and q.device.type == "cpu":
        out = dropout_attention(q, k, v, dropout=dropout, layer_scale=layer_scale)
    elif ratio == 1:
        out = _fused(q[:, :, :, 0], k, v, dropout)
    elif q.device.type == "cpu":
        # One call per query head of a group: k and v are shared as they are, without copies.
        parts = [_fused(part, k, v, dropout) for part in q.unbind(3)]
        out = torch.stack(parts, dim=3)
    else:
        out = F.scaled_dot_product_attention(
            q.flatten(2, 3).transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=dropout,
            is_causal=True,
            enable_gqa=True,
        ).transpose(1, 2)
    return out.reshape(batch, length, groups * ratio * width)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_lengths: tuple[int, ...],
    *,
    dropout: float = 0.0,
    layer_scale: int = 1,
) -> Tensor:
    """Causal attention inside each document of a packed batch.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        document_lengths: Tokens of each document, in order; they add up to B * S.
        dropout: As in `causal_attention`.
        layer_scale: As in `causal_attention`.

    Returns:
        [B, S, G * R * D].
    """
    batch, length = q.shape[:2]
    if sum(document_lengths) != batch * length:
        raise UsageError(
            f"cu_seqlens must run from 0 to the {batch * length} tokens of the batch, "
            f"found an end of {sum(document_lengths)}"
        )
    # split, not slices: its backward is one concatenation instead of one full-size sum per slice.
    parts = [
        causal_attention(
            q_doc[None], k_doc[None], v_doc[None], dropout=dropout, layer_scale=layer_scale
        )[0]
        for q_doc, k_doc, v_doc in zip(
            q.flatten(0, 1).split(document_lengths),
            k.flatten(0, 1).split(document_lengths),
            v.flatten(0, 1).split(document_lengths),
            strict=True,
        )
    ]
    return torch.cat(parts).view(batch, length, -1)


def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None, *, layer_scale: int = 1
) -> Tensor:
    """Attention of new tokens to all tokens up to and including themselves.

    Args:
        q: [B, n, G, R, D].
        keys: [B, G, L, D].
        values: [B, G, L, D].
        positions: [B, n] of the queries; None when n is 1 and every key is visible.
        layer_scale: As in `causal_attention`.

    Returns:
        [B, n, G * R * D].
    """
    batch, count, groups, ratio, width = q.shape
    length = keys.shape[2]
    rows = q.permute(0, 2, 3, 1, 4).reshape(batch, groups, ratio * count, width)
    scores = (rows * (1.0 / (math.sqrt(width) * layer_scale))) @ keys.transpose(-1, -2)
    scores = scores.to(_softmax_dtype(scores))
    if layer_scale != 1:
        scores = scores * layer_scale
    if positions is not None:
        visible = torch.arange(length, device=q.device) <= positions[..., None]
        scores = scores.view(batch, groups, ratio, count, length)
        scores = scores.masked_fill(~visible[:, None, None], float("-inf")).flatten(2, 3)
    out = scores.softmax(-1).to(values.dtype) @ values
    out = out.view(batch, groups, ratio, count, width).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, count, groups * ratio * width)


def _fused(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """PyTorch's fused kernel for q, k, v [B, S, heads, D]; returns the same shape."""
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout, is_causal=True
    ).transpose(1, 2)


def _softmax_dtype(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32

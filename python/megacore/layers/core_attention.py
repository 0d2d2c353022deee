"""softmax(q k^T / sqrt(D)) v for causal, packed and cached attention; no parameters.

Which formulation is taken where:

* float32, bfloat16 and float16 on a CPU: megacore's kernel (`native_attention`), which has windows,
  dropout, documents and caches;
* otherwise causal without dropout, or on a GPU: `scaled_dot_product_attention`, which never holds
  the S x S scores and keeps them in float32;
* float64 with dropout on a CPU: `dropout_attention`;
* a window or capped scores: `score_attention`;
* packed documents: one causal call per document, so nothing of size S x S spans the batch;
* cached keys: explicit products of the few new queries with all keys.

The softmax is computed in float32 everywhere, whatever the dtype of q, k and v. The fused kernels
keep the scores in float32 too, so there the query/key layer scaling has nothing to protect: its
two factors cancel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.errors import UsageError
from megacore.layers.dropout_attention import dropout_attention
from megacore.layers.native_attention import (
    are_consecutive,
    kernel_takes,
    native_cached,
    native_causal,
)
from megacore.layers.score_attention import (
    PLAIN,
    Scores,
    capped_attention,
    softmax_dtype,
    visible_keys,
    window_attention,
)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, scores: Scores = PLAIN
) -> Tensor:
    """Causal attention with grouped heads.

    Args:
        q: [B, S, G, R, D], R query heads per key/value head.
        k: [B, S, G, D].
        v: [B, S, G, D].
        dropout: Drop probability of attention weights (0 outside training).
        scores: Scale, cap and window.

    Returns:
        [B, S, G * R * D].
    """
    batch, length, groups, ratio, width = q.shape
    if scores.softcap is None and kernel_takes(q):
        return native_causal(q, k, v, dropout=dropout, scores=scores)
    if scores.softcap is not None:
        out = capped_attention(q, k, v, scores, dropout=dropout)
    elif dropout > 0.0 and q.device.type == "cpu":
        out = dropout_attention(q, k, v, dropout=dropout, scores=scores)
    elif scores.hides(length):
        out = window_attention(q, k, v, scores, dropout=dropout)
    elif ratio == 1:
        out = _fused(q[:, :, :, 0], k, v, dropout, scores.scale)
    elif q.device.type == "cpu":
        # One call per query head of a group: k and v are shared as they are, without copies.
        parts = [_fused(part, k, v, dropout, scores.scale) for part in q.unbind(3)]
        out = torch.stack(parts, dim=3)
    else:
        out = F.scaled_dot_product_attention(
            q.flatten(2, 3).transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=dropout,
            is_causal=True,
            scale=scores.scale,
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
    scores: Scores = PLAIN,
) -> Tensor:
    """Causal attention inside each document of a packed batch.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        document_lengths: Tokens of each document, in order; they add up to B * S.
        dropout: As in `causal_attention`.
        scores: As in `causal_attention`.

    Returns:
        [B, S, G * R * D].
    """
    batch, length = q.shape[:2]
    if sum(document_lengths) != batch * length:
        raise UsageError(
            f"cu_seqlens must run from 0 to the {batch * length} tokens of the batch, "
            f"found an end of {sum(document_lengths)}"
        )
    if scores.softcap is None and kernel_takes(q):
        return native_causal(
            q, k, v, dropout=dropout, scores=scores, document_lengths=document_lengths
        )
    # split, not slices: its backward is one concatenation instead of one full-size sum per slice.
    parts = [
        causal_attention(q_doc[None], k_doc[None], v_doc[None], dropout=dropout, scores=scores)[0]
        for q_doc, k_doc, v_doc in zip(
            q.flatten(0, 1).split(document_lengths),
            k.flatten(0, 1).split(document_lengths),
            v.flatten(0, 1).split(document_lengths),
            strict=True,
        )
    ]
    return torch.cat(parts).view(batch, length, -1)


def cached_attention(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None, *, scores: Scores = PLAIN
) -> Tensor:
    """Attention of new tokens to all tokens up to and including themselves.

    Args:
        q: [B, n, G, R, D].
        keys: [B, G, L, D].
        values: [B, G, L, D].
        positions: [B, n] of the queries; None when n is 1 and it is behind every key.
        scores: As in `causal_attention`.

    Returns:
        [B, n, G * R * D].
    """
    batch, count, groups, ratio, width = q.shape
    if (
        scores.softcap is None
        and kernel_takes(q)
        # One or two rows leave most lanes of the kernel empty; plain products in float32 do not.
        and (count * ratio >= 4 or q.dtype != torch.float32)
        and (count == 1 or (positions is not None and are_consecutive(positions)))
    ):
        return native_cached(q, keys, values, positions, scores)
    if positions is None and scores.window is not None:
        keys, values = keys[:, :, -scores.window :], values[:, :, -scores.window :]
    length = keys.shape[2]
    rows = q.permute(0, 2, 3, 1, 4).reshape(batch, groups, ratio * count, width)
    found = (rows * (scores.factor(width) / scores.layer_scale)) @ keys.transpose(-1, -2)
    found = found.to(softmax_dtype(found))
    if scores.layer_scale != 1:
        found = found * scores.layer_scale
    found = scores.capped(found)
    if positions is not None:
        places = torch.arange(length, device=q.device)
        visible = visible_keys(positions, places, scores.window)
        found = found.view(batch, groups, ratio, count, length)
        found = found.masked_fill(~visible[:, None, None], float("-inf")).flatten(2, 3)
    out = found.softmax(-1).to(values.dtype) @ values
    out = out.view(batch, groups, ratio, count, width).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, count, groups * ratio * width)


def _fused(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None) -> Tensor:
    """PyTorch's fused kernel for q, k, v [B, S, heads, D]; returns the same shape."""
    return F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        dropout_p=dropout,
        is_causal=True,
        scale=scale,
    ).transpose(1, 2)

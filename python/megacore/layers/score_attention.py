"""Attention with windows and capped scores, where no kernel has them.

A query with a window of W tokens sees itself and the W - 1 before it. Queries are taken in blocks
of about W rows, each with the at most two blocks of keys that it can see, so the work grows with
S * W and no S x S mask exists.

Capped scores are explicit products: they hold the weights of all heads, [B, G, R, n, keys], from
forward to backward (selective recompute frees them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops.softmax import softmax

# Rows of a block when the window is smaller: less would be many tiny products.
_MIN_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Scores:
    """From products of queries and keys to the scores that the softmax takes.

    Attributes:
        scale: Products are multiplied by this; None for 1 / sqrt(D).
        layer_scale: They are computed this many times smaller and multiplied back in float32.
        softcap: Scores s become cap * tanh(s / cap) (Gemma 2, Google, 2024); None for no cap.
        window: Tokens that a query sees, itself included; None for all before it.
    """

    scale: float | None = None
    layer_scale: int = 1
    softcap: float | None = None
    window: int | None = None

    def factor(self, width: int) -> float:
        """What products of heads of this width are multiplied by."""
        return 1.0 / math.sqrt(width) if self.scale is None else self.scale

    def capped(self, scores: Tensor) -> Tensor:
        """The scores behind the cap, in their dtype."""
        if self.softcap is None:
            return scores
        return torch.tanh(scores / self.softcap) * self.softcap

    def hides(self, length: int) -> bool:
        """Whether the window hides anything of so many tokens."""
        return self.window is not None and length > self.window


PLAIN = Scores()


def softmax_dtype(scores: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def visible_keys(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a query sees.

    Args:
        queries: [..., n] positions.
        keys: [k] positions.
        window: As in `Scores`.

    Returns:
        [..., n, k] bool.
    """
    visible = keys <= queries[..., None]
    return visible if window is None else visible & (keys > queries[..., None] - window)


def window_attention(q: Tensor, k: Tensor, v: Tensor, scores: Scores, *, dropout: float) -> Tensor:
    """Causal attention within `scores.window`, without a cap, by PyTorch's kernels.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        scores: Scale and window.
        dropout: Drop probability of attention weights.

    Returns:
        [B, S, G, R, D].
    """
    batch, _, groups, ratio, width = q.shape
    heads_k, heads_v = (x.transpose(1, 2) for x in (k, v))
    parts = []
    positions = torch.arange(q.shape[1], device=q.device)
    for rows, keys in _blocks(q.shape[1], scores.window):
        mask = visible_keys(positions[rows], positions[keys], scores.window)
        # The query heads of a group stand below each other: its keys are shared without copies.
        block = q[:, rows].permute(0, 2, 3, 1, 4)
        count = block.shape[3]
        out = F.scaled_dot_product_attention(
            block.reshape(batch, groups, ratio * count, width),
            heads_k[:, :, keys],
            heads_v[:, :, keys],
            attn_mask=mask.repeat(ratio, 1),
            dropout_p=dropout,
            scale=scores.factor(width),
        )
        parts.append(out.view(batch, groups, ratio, count, width))
    return torch.cat(parts, dim=3).permute(0, 3, 1, 2, 4)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, scores: Scores, *, dropout: float) -> Tensor:
    """Causal attention with capped scores, with or without a window; softmax in float32.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        scores: Scale, cap and window.
        dropout: Drop probability of attention weights.

    Returns:
        [B, S, G, R, D].
    """
    heads_k, heads_v = (x.transpose(1, 2)[:, :, None] for x in (k, v))
    factor = scores.factor(q.shape[-1]) / scores.layer_scale
    parts = []
    for rows, keys in _blocks(q.shape[1], scores.window):
        block = q[:, rows].permute(0, 2, 3, 1, 4)
        found = (block * factor) @ heads_k[..., keys, :].transpose(-1, -2)
        found = scores.capped(found.to(softmax_dtype(found)) * scores.layer_scale)
        weights = softmax(
            found.flatten(1, 2),
            causal=True,
            offset=rows.start - keys.start,
            window=scores.window,
        )
        weights = weights.view(found.shape).to(v.dtype)
        parts.append(F.dropout(weights, dropout) @ heads_v[..., keys, :])
    return torch.cat(parts, dim=3).permute(0, 3, 1, 2, 4)


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Rows of queries, and the keys that they can see."""
    reach = length if window is None else window
    count = max(reach, _MIN_ROWS)
    for first in range(0, length, count):
        rows = slice(first, min(first + count, length))
        keys = slice(max(0, first - reach + 1), rows.stop)
        yield rows, keys

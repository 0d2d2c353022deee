"""Causal, packed and cached attention by megacore's own kernel (`megacore.ops.attention`).

It is taken on a CPU for float32, bfloat16 and float16 without capped scores: there it is faster
than PyTorch's fused kernel, which has no windows, no dropout and no packed documents either. On a
GPU PyTorch's kernels are taken, because no GPU has measured ours yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacore.layers.score_attention import Scores
from megacore.ops import library
from megacore.ops.attention import MAX_HEAD, attention

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel_takes(q: Tensor) -> bool:
    """Whether megacore's kernel is the one for queries [..., D] of this dtype and device."""
    return (
        q.device.type == "cpu"
        and q.dtype in _DTYPES
        and q.shape[-1] <= MAX_HEAD
        and library.has_kernel("attention_forward", "cpu")
    )


def native_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float,
    scores: Scores,
    document_lengths: tuple[int, ...] | None = None,
) -> Tensor:
    """Causal attention, of every document alone where lengths are given.

    Args:
        q: [B, S, G, R, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        dropout: Drop probability; the seed comes from PyTorch's default CPU generator.
        scores: Scale and window; no cap.
        document_lengths: Tokens of each document of the flattened batch, or None.

    Returns:
        [B, S, G * R * D].
    """
    batch, length, groups, ratio, width = q.shape
    documents = None
    if document_lengths is not None:
        ends = torch.tensor((0, *document_lengths)).cumsum(0)
        q, k, v, documents = *(x.flatten(0, 1)[None] for x in (q, k, v)), ends
    seed = 0
    if dropout > 0.0:
        seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    out, _ = attention(
        q,
        k,
        v,
        causal=True,
        window=scores.window,
        scale=scores.factor(width),
        drop=dropout,
        seed=seed,
        documents=documents,
    )
    return out.view(batch, length, groups * ratio * width)


def are_consecutive(positions: Tensor) -> bool:
    """Whether the queries of every row of [B, n] stand behind each other."""
    steps = torch.arange(positions.shape[1], device=positions.device)
    return bool((positions == positions[:, :1] + steps).all())


def native_cached(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None, scores: Scores
) -> Tensor:
    """Attention of new tokens to a cache.

    Args:
        q: [B, n, G, R, D].
        keys: [B, G, L, D].
        values: [B, G, L, D].
        positions: [B, n] consecutive positions of the queries; None for the last of the keys.
        scores: Scale and window; no cap.

    Returns:
        [B, n, G * R * D].
    """
    out, _ = attention(
        q,
        keys.transpose(1, 2),
        values.transpose(1, 2),
        causal=True,
        window=scores.window,
        scale=scores.factor(q.shape[-1]),
        key_lengths=None if positions is None else positions[:, -1] + 1,
    )
    return out.flatten(2)

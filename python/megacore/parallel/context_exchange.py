"""Attention of sequences that are cut among ranks: heads are exchanged for tokens.

Each rank gets all tokens of 1 / cp of the key/value groups, with their queries, attends as one
process would, and gives the context of its heads back for the tokens it came from.

Source: Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme
Long Sequence Transformer Models" (2023).

Volume sent per rank and layer, with n = B * S / cp * G * D: forward (2 R + 2) n (cp - 1) / cp
elements, backward the same; more ranks do not make it more, unlike the ring.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacore.parallel.context_plan import parts_of_all, whole_sequence
from megacore.parallel.groups import Group


def _exchange(x: Tensor, group: Group) -> Tensor:
    """Part i of `x` [cp, ...] goes to rank i; part i of the result came from rank i."""
    x = x.contiguous()
    out = torch.empty_like(x)
    group.all_to_all(out, x)
    return out


def _gather_tokens(x: Tensor, group: Group) -> Tensor:
    """[B, S / cp, G, w] to [B, S, G / cp, w]."""
    by_rank = x.unflatten(2, (group.size, -1)).movedim(2, 0)
    return whole_sequence(_exchange(by_rank, group))


def _gather_heads(x: Tensor, group: Group) -> Tensor:
    """[B, S, G / cp, w] to [B, S / cp, G, w]."""
    by_rank = _exchange(parts_of_all(x, group.size), group)
    return by_rank.movedim(0, 2).flatten(2, 3)


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather_heads(grads[0], ctx.group), None


class _GatherHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather_heads(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather_tokens(grads[0], ctx.group), None


def gather_tokens(q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens of some groups, for some tokens of all groups; one exchange for all three.

    Args:
        q: [B, S / cp, G, R, D], local tokens in the order of `context_plan`.
        k: [B, S / cp, G, D].
        v: [B, S / cp, G, D].
        group: The ranks; their number divides G.

    Returns:
        q [B, S, G / cp, R, D], k and v [B, S, G / cp, D], in the order of the sequence.
    """
    ratio = q.shape[3]
    together = torch.cat([q, k[:, :, :, None], v[:, :, :, None]], dim=3)
    whole = _GatherTokens.apply(together.flatten(3), group)
    assert isinstance(whole, Tensor)
    parts = whole.unflatten(3, (ratio + 2, -1)).split((ratio, 1, 1), dim=3)
    return parts[0], parts[1][:, :, :, 0], parts[2][:, :, :, 0]


def gather_heads(context: Tensor, num_groups: int, group: Group) -> Tensor:
    """Context of all heads for some tokens, from that of some heads for all tokens.

    Args:
        context: [B, S, (G / cp) * R * D], in the order of the sequence.
        num_groups: G.
        group: The ranks.

    Returns:
        [B, S / cp, G * R * D], local tokens in the order of `context_plan`.
    """
    heads = context.unflatten(2, (num_groups // group.size, -1))
    result = _GatherHeads.apply(heads, group)
    assert isinstance(result, Tensor)
    return result.flatten(2)

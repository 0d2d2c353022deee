"""Attention of sequences that are cut among the ranks of a ring: keys and values go round.

Sources: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context" (2023);
Brandon et al., "Striped Attention" (2023), for why a causal mask needs a balanced cut.

Forward: at step t a rank attends to the keys and values of rank r - t, while these already travel
on to rank r + 1 and those of rank r - t - 1 arrive. Backward: the same once more, and behind the
keys travel their gradients, to which each rank adds its part when they pass; after a last hop they
are at home. Keys and values have their few heads while they travel.

Everything is added in a fixed order: the same inputs give bitwise the same results.

Volume sent per rank and layer, with n = B * S / cp * G * D: forward 2 n (cp - 1) elements; backward
2 n (cp - 1) elements and 2 n cp in float32 (float64 for float64), in which gradients are summed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore.layers.attention_block import (
    BlockDropout,
    accumulation_dtype,
    attention_block,
    attention_block_backward,
    merge_block,
)
from megacore.parallel.context_plan import BlockTask
from megacore.parallel.groups import Group, Work


@dataclass(frozen=True, kw_only=True)
class Ring:
    """What the attention of one forward pass does.

    Attributes:
        group: The ranks.
        plan: Blocks of each step, as `ring_plan` gives them.
        drop: Drop probability of attention weights.
        seed: Of the random streams of this pass.
    """

    group: Group
    plan: Sequence[Sequence[BlockTask]]
    drop: float = 0.0
    seed: int = 0

    def dropout(self, step: int, number: int) -> BlockDropout | None:
        """Dropout of a block: its stream depends on the queries' and the keys' rank."""
        if self.drop == 0.0:
            return None
        key = struct.pack("<4q", self.seed, self.group.rank, step, number)
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
        return BlockDropout(drop=self.drop, seed=seed)


def start_shift(out: Tensor, x: Tensor, group: Group) -> Work:
    """Starts to send `x` to the next rank and to receive `out` from the one before.

    One exchange in which the other ranks get nothing, not a send and a receive: NCCL runs the two
    halves of an exchange together, where a ring of separate sends would wait for itself.

    Args:
        out: [n, ...], contiguous.
        x: [n, ...], contiguous, the same shape and dtype everywhere; not to be changed before the
            end.
        group: The ranks.
    """
    in_splits, out_splits = [0] * group.size, [0] * group.size
    in_splits[(group.rank + 1) % group.size] = x.shape[0]
    out_splits[(group.rank - 1) % group.size] = x.shape[0]
    return group.all_to_all(out, x, out_splits, in_splits, async_op=True)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
        dtype = accumulation_dtype(q)
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
        log_sum = torch.empty(q.shape[:-1], dtype=dtype, device=q.device)
        pair = torch.stack([k, v])
        for step, tasks in enumerate(ring.plan):
            arriving, work = pair, None
            if step + 1 < len(ring.plan):
                arriving = torch.empty_like(pair)
                work = start_shift(arriving, pair, ring.group)
            for number, task in enumerate(tasks):
                here = (task.rows, task.queries)
                keys, values = pair[:, task.rows, task.keys]
                dropout = ring.dropout(step, number)
                block = attention_block(q[here], keys, values, causal=task.causal, dropout=dropout)
                if step == 0:
                    out[here], log_sum[here] = block
                else:
                    merge_block(out[here], log_sum[here], block)
            if work is not None:
                work.wait()
            pair = arriving
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, log_sum)
        ctx.ring = ring
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sum = ctx.saved_tensors
        ring: Ring = ctx.ring
        dtype = accumulation_dtype(q)
        d_q = torch.empty(q.shape, dtype=dtype, device=q.device)
        pair = torch.stack([k, v])
        d_pair = torch.empty(pair.shape, dtype=dtype, device=q.device)
        d_arriving, d_work = d_pair, Work()
        for step, tasks in enumerate(ring.plan):
            arriving, work = pair, Work()
            if step + 1 < len(ring.plan):
                arriving = torch.empty_like(pair)
                work = start_shift(arriving, pair, ring.group)
            parts = []
            for number, task in enumerate(tasks):
                here = (task.rows, task.queries)
                keys, values = pair[:, task.rows, task.keys]
                parts.append(
                    attention_block_backward(
                        *(grads[0][here], q[here], keys, values, out[here], log_sum[here]),
                        causal=task.causal,
                        dropout=ring.dropout(step, number),
                    )
                )
            # The gradients so far of these keys arrive while this rank's part is computed.
            d_work.wait()
            d_pair = d_arriving
            for task, part in zip(tasks, parts, strict=True):
                _add(d_q[task.rows, task.queries], part[0], is_first=step == 0)
                _add(d_pair[0, task.rows, task.keys], part[1], is_first=step == 0)
                _add(d_pair[1, task.rows, task.keys], part[2], is_first=step == 0)
            d_arriving = torch.empty_like(d_pair)
            d_work = start_shift(d_arriving, d_pair, ring.group)
            work.wait()
            pair = arriving
        d_work.wait()
        d_k, d_v = d_arriving.to(k.dtype)
        return d_q.to(q.dtype), d_k, d_v, None


def _add(total: Tensor, part: Tensor, *, is_first: bool) -> None:
    if is_first:
        total.copy_(part)
    else:
        total.add_(part)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
    """Causal attention of the local queries to the tokens of all ranks.

    Every rank calls it at the same time, and later its backward.

    Args:
        q: [B, S / cp, G, R, D], local tokens in the order of `context_plan`.
        k: [B, S / cp, G, D].
        v: [B, S / cp, G, D].
        ring: What to do.

    Returns:
        [B, S / cp, G, R, D].

    Raises:
        CommunicationError: A rank is gone, or not at the same place.
    """
    result = _RingAttention.apply(q, k, v, ring)
    assert isinstance(result, Tensor)
    return result

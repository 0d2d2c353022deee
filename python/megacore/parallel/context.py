"""Context parallelism: the ranks of a group hold the same model and parts of the same sequences.

Everything but attention works on tokens one by one, so only attention communicates. What is left
to the caller, who trains on local losses:

* The loss of a micro-batch is the sum of its token losses over all ranks of the group, divided by
  the tokens that count in the whole micro-batch (in the uncut `loss_mask`, which every rank has
  read: no communication is needed). Each rank runs backward from its own part of it,
  `local loss sum / tokens of the whole micro-batch`; the gradients of the ranks then *add up*.
  A gradient reduction over data and context parallel ranks together (`dp_cp`) that averages has
  divided by cp too much: scale the loss by cp there, or divide the sum by the number of data
  parallel ranks only. With per-token loss nothing is divided before the end: sums of losses and
  gradients over dp_cp, divided by the tokens of the whole batch, of which each context parallel
  group counts its micro-batches once (or each rank its local tokens).
* Evaluation: local loss sums and local token counts (or whole counts once per group) add up.
* Reported losses: sum over dp_cp of the local sums, divided by the tokens of all.
* Random streams: dropout outside attention draws from the default generator of each rank, which
  must be seeded differently on each, or the tokens of all ranks get the same masks.

Attention dropout is deterministic, and recompute repeats it, but its masks differ between context
parallel sizes and kinds: no rank draws those of another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from megacore.data.loader import Batch
from megacore.errors import UsageError
from megacore.layers.attention import AttentionContext, SelfAttention
from megacore.layers.rotary_scaling import LongRopeScaling
from megacore.layers.score_attention import Scores
from megacore.models.staged import StagedModel
from megacore.parallel.context_exchange import gather_heads, gather_tokens
from megacore.parallel.context_plan import local_part, ring_plan
from megacore.parallel.context_ring import Ring, ring_attention
from megacore.parallel.groups import Group


class RingAttention(nn.Module):
    """Core attention by a ring of point-to-point exchanges; any number of heads.

    Args:
        dropout: Drop probability of attention weights in training.
        group: The ranks.
    """

    def __init__(self, *, dropout: float, group: Group) -> None:
        super().__init__()
        self.dropout = dropout
        self.group = group

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """Attend with local q [B, S / cp, G, R, D], k and v [B, S / cp, G, D].

        Returns:
            [B, S / cp, G * R * D].
        """
        drop = self.dropout if self.training else 0.0
        plan = ring_plan(
            batch_size=q.shape[0],
            length=q.shape[1],
            rank=self.group.rank,
            size=self.group.size,
            document_lengths=context.document_lengths,
        )
        # One number of the default stream stands for all masks of this pass: recompute restores
        # the stream, and backward draws the masks again.
        seed = int(torch.randint(2**62, ())) if drop > 0.0 else 0
        ring = Ring(group=self.group, plan=plan, drop=drop, seed=seed)
        return ring_attention(q, k, v, ring).flatten(2)


class ExchangeAttention(nn.Module):
    """Core attention by exchanging heads for tokens; the ranks must divide the groups of heads.

    Args:
        inner: Attention of whole sequences.
        group: The ranks.
    """

    def __init__(self, inner: nn.Module, *, group: Group) -> None:
        super().__init__()
        self.inner = inner
        self.group = group

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """Attend with local q [B, S / cp, G, R, D], k and v [B, S / cp, G, D].

        Returns:
            [B, S / cp, G * R * D].
        """
        num_groups = k.shape[2]
        q, k, v = gather_tokens(q, k, v, self.group)
        return gather_heads(self.inner(q, k, v, context), num_groups, self.group)


def apply_context_parallel(model: StagedModel, group: Group, *, comm_type: str = "p2p") -> None:
    """Replace, in place, the core attention of every layer by one over the ranks of a group.

    The model then takes local tokens, labels and positions (`local_batch`) and must be given the
    positions; `cu_seqlens` is that of the whole batch. Losses and hidden states are local ones.

    Args:
        model: Model or stage of a model, on any device, cut for tensor parallelism or not.
        group: The ranks; nothing is changed when there is one.
        comm_type: "p2p" sends keys and values round a ring, "a2a" exchanges heads for tokens.

    Raises:
        UsageError: The groups of heads cannot be divided among the ranks ("a2a"), the ring cannot
            compute the scores ("p2p"), or angles depend on the length of the whole sequence.
    """
    if group.size == 1:
        return
    rotary = model.spec.rotary
    if rotary is not None and isinstance(rotary.scaling, LongRopeScaling):
        raise UsageError("LongRoPE needs whole sequences, not those of context parallelism")
    for layer in model.blocks["decoder"].layers.values():
        attention = layer.self_attention
        assert isinstance(attention, SelfAttention)
        core: nn.Module
        if comm_type == "p2p":
            _check_scores(attention)
            core = RingAttention(dropout=attention.spec.attention_dropout, group=group)
        else:
            _check_groups(attention, group)
            core = ExchangeAttention(attention.core_attention, group=group)
        attention.add_module("core_attention", core)
    model.register_forward_pre_hook(_check_positions, with_kwargs=True)


def _check_scores(attention: SelfAttention) -> None:
    if attention.scores != Scores(layer_scale=attention.scores.layer_scale):
        raise UsageError(
            "--cp-comm-type p2p: ring attention knows no window, no cap and no other scale of the "
            f"scores, found {attention.scores}; use a2a"
        )


def _check_groups(attention: SelfAttention, group: Group) -> None:
    spec = attention.spec
    rows_of_group = (spec.num_heads // spec.num_groups + 2) * spec.head_dim
    num_groups = attention.linear_qkv.weight.shape[0] // rows_of_group
    if num_groups % group.size:
        raise UsageError(
            f"--cp-comm-type a2a: the {num_groups} key/value groups of a tensor-parallel rank "
            f"cannot be divided among {group.size} context-parallel ranks; use p2p"
        )


def _check_positions(model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """The default positions of a model are those of a whole sequence."""
    given = arguments[1] if len(arguments) > 1 else named.get("position_ids")
    if given is None:
        raise UsageError("a context-parallel model needs the positions of its local tokens")


def local_batch(batch: Batch, group: Group) -> Batch:
    """The part of a micro-batch whose tokens this rank has.

    Args:
        batch: Whole sequences, the same on every rank of the group.
        group: The ranks.

    Returns:
        Tokens, labels, loss mask and (true) positions [b, S / cp] of chunks r and 2 * cp - 1 - r;
        document bounds remain those of the whole batch.

    Raises:
        UsageError: S is not a multiple of 2 * cp.
    """
    if group.size == 1:
        return batch

    def cut(x: Tensor) -> Tensor:
        return local_part(x, rank=group.rank, size=group.size)

    return replace(
        batch,
        tokens=cut(batch.tokens),
        labels=cut(batch.labels),
        loss_mask=cut(batch.loss_mask),
        position_ids=cut(batch.position_ids),
    )

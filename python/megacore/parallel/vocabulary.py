"""Word embedding and cross entropy of a vocabulary that is split over the processes of a group.

Each process has a range of consecutive rows of the table, and so the logits of a range of
consecutive words. Only a few numbers per token are exchanged for the loss, never logits.

Source: Shoeybi et al., "Megatron-LM" (2019), section 3 (embedding and cross entropy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.cross_entropy import loss_dtype
from megacore.layers.embedding import lookup
from megacore.ops.cross_entropy import PLAIN, LogitSums, logit_sums
from megacore.ops.linear_cross_entropy import linear_token_losses
from megacore.parallel.collectives import reduce, reduce_scatter, shared, start_all_reduce
from megacore.parallel.groups import Group
from megacore.parallel.pieces import SEQUENCE


def check_ids(ids: Tensor, vocab_size: int, what: str) -> None:
    """Refuse ids that no process has: they would silently count as zeros.

    On a GPU, where reading a value would stop the host, the check runs on the device and its
    failure is that of a kernel.

    Args:
        ids: [...] int64.
        vocab_size: They must lie in [0, vocab_size).
        what: "token" or "label", for the message.

    Raises:
        UsageError: An id lies outside; the message names the first one.
    """
    good = (ids >= 0) & (ids < vocab_size)
    if ids.device.type != "cpu":
        torch._assert_async(good.all(), f"a {what} lies outside the vocabulary")
    elif not bool(good.all()):
        first = ids[~good][0].item()
        raise UsageError(
            f"{what} {first} lies outside the vocabulary of {vocab_size} words (padding included)"
        )


@dataclass(frozen=True, kw_only=True)
class SplitLookup:
    """Looks words up in a table of which each process has consecutive rows.

    Attributes:
        group: The processes that have the parts.
        sequence: Return this process's part of the sequence only.
    """

    group: Group
    sequence: bool

    def __call__(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Rows `tokens` [B, S] of the whole table.

        Args:
            table: [V / size, H], this process's rows.
            tokens: [B, S] int64.

        Returns:
            [B, S, H], or [B, S / size, H] with `sequence`.

        Raises:
            UsageError: A token lies outside the vocabulary.
        """
        rows = table.shape[0]
        check_ids(tokens, rows * self.group.size, "token")
        local, elsewhere = local_ids(tokens, rows, self.group.rank)
        found = lookup(table, local).masked_fill(elsewhere[..., None], 0.0)
        if self.sequence:
            return reduce_scatter(found, self.group, SEQUENCE)
        return reduce(found, self.group)


def local_ids(ids: Tensor, rows: int, rank: int) -> tuple[Tensor, Tensor]:
    """Row of each id in this process's part, and where another has it (there the row is 0)."""
    local = ids - rank * rows
    elsewhere = (local < 0) | (local >= rows)
    return local.masked_fill(elsewhere, 0), elsewhere


class SplitTokenLoss(nn.Module):
    """Cross entropy of every token, from logits of which each process has consecutive words.

    Args:
        group: The processes that have the parts.
        in_half: Compute in float16 when the logits are float16.
    """

    def __init__(self, group: Group, *, in_half: bool) -> None:
        super().__init__()
        self.group = group
        self.in_half = in_half

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses [B, S] of `logits` [B, S, V / size], which are consumed, for `labels` [B, S].

        The losses are the same on every process. As in one process, backward writes the gradient
        over the logits.

        Raises:
            UsageError: A label lies outside the vocabulary.
        """
        check_ids(labels, logits.shape[-1] * self.group.size, "label")
        compute = loss_dtype(logits, in_half=self.in_half)
        losses = _CrossEntropy.apply(logits.flatten(0, 1), labels.reshape(-1), compute, self.group)
        assert isinstance(losses, Tensor)
        return losses.view(labels.shape)


class SplitLinearTokenLoss(nn.Module):
    """`LinearTokenLoss` with a weight of which each process has consecutive rows.

    Args:
        group: The processes that have the parts.
        sequence: A process has its part of the sequence of hidden states only.
    """

    def __init__(self, group: Group, *, sequence: bool) -> None:
        super().__init__()
        self.group = group
        self.sequence = sequence

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Losses [B, S], the same on every process.

        Args:
            hidden: [B, S, H], or [B, S / size, H] with `sequence`.
            weight: [V / size, H].
            labels: [B, S] int64.

        Raises:
            UsageError: A label lies outside the vocabulary.
        """
        group = self.group
        vocab_size = weight.shape[0] * group.size
        check_ids(labels, vocab_size, "label")
        whole = shared(hidden, group, sequence=self.sequence)
        losses = linear_token_losses(
            whole.flatten(0, 1),
            weight,
            labels.reshape(-1),
            vocab_size=vocab_size,
            first_column=group.rank * weight.shape[0],
            exchange=lambda sums: _whole_sums(sums, group),
        )
        return losses.view(labels.shape)


def _whole_sums(here: LogitSums, group: Group) -> LogitSums:
    """The sums over the whole vocabulary from those over each process's part."""
    largest = here.largest.clone()
    group.all_reduce(largest, "max")
    # The sum of the exponentials relative to the largest logit of all, and the label's logit,
    # which one process has.
    both = torch.stack((here.total * (here.largest - largest).exp(), here.chosen))
    start_all_reduce(both, group)()
    total, chosen = both.unbind(0)
    return LogitSums(largest, total, chosen, here.sum)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, compute: torch.dtype, group: Group
    ) -> Tensor:
        first = group.rank * logits.shape[1]
        here = logit_sums(logits, labels, first_column=first, compute=compute)
        sums = _whole_sums(here, group)
        ctx.save_for_backward(labels, *sums)
        ctx.logits, ctx.first, ctx.vocab_size = logits, first, logits.shape[1] * group.size
        losses = PLAIN.losses(sums, labels, ctx.vocab_size)
        return losses.float() if compute == torch.float16 else losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        labels, *sums = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("cross entropy: a second backward; its logits were overwritten")
        PLAIN.write_gradient(
            logits,
            labels,
            LogitSums(*sums),
            grads[0],
            vocab_size=ctx.vocab_size,
            first_column=ctx.first,
        )
        return logits, None, None, None

"""Cross entropy over a large vocabulary, or over the columns of it that this process has.

Two ops with the caller between them: `logit_sums` reads the logits once, `write_gradient` writes
the gradient over them. What is exchanged among processes, and what the loss is, is made of vectors
with one number per token. The kernels are `csrc/kernels/cross_entropy.*`; sums are float32.
Source: Shoeybi et al., "Megatron-LM", 2019, section 3; Szegedy et al., "Rethinking the Inception
Architecture", 2016 (label smoothing); de Brebisson and Vincent, "The Z-loss", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megacore.ops import library

# Elements that the references work on at a time: 1 MB of float32, in a core's second-level cache.
_CHUNK_ELEMENTS = 1 << 18


class LogitSums(NamedTuple):
    """What forward gives, each [M]; in the dtype of the computation.

    Attributes:
        largest: Largest logit of a row.
        total: Sum of the exponentials of its logits less `largest`.
        chosen: Logit of its label; 0 where the label is not one of the columns.
        sum: Sum of its logits, or no elements.
    """

    largest: Tensor
    total: Tensor
    chosen: Tensor
    sum: Tensor


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a token's loss is besides -log softmax(logits)[label].

    Attributes:
        label_smoothing: Share of the target that is spread over the whole vocabulary.
        z_loss: Factor of the square of the log of the sum of the exponentials.
        ignore_index: Tokens with this label have no loss and no gradient; None for no such label.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ignore_index: int | None = None

    def losses(self, sums: LogitSums, labels: Tensor, vocab_size: int) -> Tensor:
        """Losses [M] of tokens with these sums over all `vocab_size` columns."""
        log_total = sums.total.log()
        # The difference to the largest logit is exact or nearly so.
        losses = log_total - (sums.chosen - sums.largest)
        if self.label_smoothing:
            spread = log_total - (sums.sum / vocab_size - sums.largest)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * spread
        if self.z_loss:
            losses = losses + self.z_loss * (log_total + sums.largest).square()
        if self.ignore_index is not None:
            losses = losses.masked_fill(labels == self.ignore_index, 0.0)
        return losses

    def write_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        sums: LogitSums,
        grad: Tensor,
        *,
        vocab_size: int,
        first_column: int = 0,
    ) -> None:
        """Overwrite logits [M, V] with the gradient, given that of the losses, [M]."""
        grad = grad.to(sums.total.dtype).contiguous()
        if self.ignore_index is not None:
            grad = grad.masked_fill(labels == self.ignore_index, 0.0)
        factor, at_label, uniform = grad / sums.total, grad, None
        if self.z_loss:
            factor = factor * (1 + 2 * self.z_loss * (sums.total.log() + sums.largest))
        if self.label_smoothing:
            at_label = grad * (1 - self.label_smoothing)
            uniform = grad * (self.label_smoothing / vocab_size)
        write_gradient(
            logits, labels, sums.largest, factor, at_label, uniform, first_column=first_column
        )


PLAIN = LossTerms()


def logit_sums(
    logits: Tensor,
    labels: Tensor,
    *,
    first_column: int = 0,
    with_sum: bool = False,
    compute: torch.dtype = torch.float32,
) -> LogitSums:
    """One pass over logits.

    Args:
        logits: [M, V] floating point, contiguous, V at least 1.
        labels: [M] int64 numbers of columns of the whole vocabulary.
        first_column: Number of the first column here.
        with_sum: Whether to add up the logits too.
        compute: Dtype of the sums; another one than float32 takes the reference.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    if compute != torch.float32:
        return LogitSums(*_sums(logits, labels, first_column, with_sum, compute))
    return LogitSums(*torch.ops.megacore.cross_entropy_sums(logits, labels, first_column, with_sum))


def write_gradient(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    factor: Tensor,
    at_label: Tensor,
    uniform: Tensor | None = None,
    *,
    first_column: int = 0,
) -> None:
    """logits = exp(logits - largest) * factor - uniform, less at_label where the label is.

    Args:
        logits: [M, V] floating point, contiguous; overwritten.
        labels: [M] int64 numbers of columns of the whole vocabulary.
        largest: [M] in the dtype of the computation, as all vectors here.
        factor: [M].
        at_label: [M].
        uniform: [M] or None.
        first_column: Number of the first column here.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    vectors = (labels, largest, factor, at_label, uniform)
    if largest.dtype != torch.float32:
        _reference_gradient(logits, *vectors, first_column)
    else:
        torch.ops.megacore.cross_entropy_gradient_(logits, *vectors, first_column)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, terms: LossTerms, compute: torch.dtype
    ) -> Tensor:
        sums = logit_sums(logits, labels, with_sum=terms.label_smoothing > 0.0, compute=compute)
        ctx.save_for_backward(labels, *sums)
        ctx.logits, ctx.terms = logits, terms
        losses = terms.losses(sums, labels, logits.shape[1])
        return losses.float() if compute == torch.float16 else losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        labels, *sums = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("cross entropy: a second backward; its logits were overwritten")
        ctx.terms.write_gradient(
            logits, labels, LogitSums(*sums), grads[0], vocab_size=logits.shape[1]
        )
        return logits, None, None, None


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    terms: LossTerms = PLAIN,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Losses [M] of every row, in float32 (float64 with that `compute`).

    The logits are consumed: backward writes their gradient over them, so nobody else may use
    them, and backward can run only once.

    Args:
        logits: [M, V] of any floating dtype, contiguous.
        labels: [M] int64, each in [0, V) or the ignored one.
        terms: Label smoothing, z-loss and which label is ignored.
        compute: As in `logit_sums`.

    Raises:
        RuntimeError: A tensor does not fit; the message names it. On a CPU also for a label
            outside the vocabulary; on a GPU such a label counts as one whose logit is 0.
    """
    check_labels(labels, logits.shape[1], terms)
    result = _CrossEntropy.apply(logits, labels, terms, compute)
    assert isinstance(result, Tensor)
    return result


def check_labels(labels: Tensor, vocab_size: int, terms: LossTerms) -> None:
    """Refuse labels on a CPU that are neither columns nor ignored."""
    if labels.device.type != "cpu":
        return
    counted = labels if terms.ignore_index is None else labels[labels != terms.ignore_index]
    if counted.numel() == 0:
        return
    lowest, highest = counted.aminmax()
    if lowest < 0 or highest >= vocab_size:
        raise RuntimeError(
            f"labels: expected numbers in [0, {vocab_size}), found {int(lowest)} to {int(highest)}"
        )


def cross_entropy_reference(logits: Tensor, labels: Tensor, *, terms: LossTerms = PLAIN) -> Tensor:
    """`cross_entropy` in plain PyTorch, in float32 or float64; the logits stay."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_softmax = wide.log_softmax(-1)
    ignored = labels == (-1 if terms.ignore_index is None else terms.ignore_index)
    picked = log_softmax.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
    smoothing = terms.label_smoothing
    losses = -(1 - smoothing) * picked - smoothing * log_softmax.mean(-1)
    losses = losses + terms.z_loss * wide.logsumexp(-1).square()
    return losses.masked_fill(ignored, 0.0)


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, logits.shape[0], rows):
        yield slice(start, start + rows)


def _columns(labels: Tensor, first_column: int, count: int) -> tuple[Tensor, Tensor]:
    """Column of each label here, and where there is none (there the column is 0)."""
    columns = labels - first_column
    elsewhere = (columns < 0) | (columns >= count)
    return columns.masked_fill(elsewhere, 0), elsewhere


def _sums(
    logits: Tensor, labels: Tensor, first_column: int, with_sum: bool, compute: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    columns, elsewhere = _columns(labels, first_column, logits.shape[1])
    vectors = torch.empty((4, *labels.shape), dtype=compute, device=logits.device)
    largest, total, chosen, added = vectors
    for part in _chunks(logits):
        chunk = logits[part].to(compute)
        largest[part] = chunk.amax(dim=1)
        chosen[part] = chunk.gather(1, columns[part, None])[:, 0]
        added[part] = chunk.sum(dim=1)
        total[part] = (chunk - largest[part, None]).exp_().sum(dim=1)
    chosen.masked_fill_(elsewhere, 0.0)
    total.masked_fill_(largest == float("-inf"), 0.0)
    return largest.clone(), total.clone(), chosen.clone(), added[: None if with_sum else 0].clone()


def _reference_sums(
    logits: Tensor, labels: Tensor, first_column: int, with_sum: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _sums(logits, labels, first_column, with_sum, torch.float32)


def _reference_gradient(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    factor: Tensor,
    at_label: Tensor,
    uniform: Tensor | None,
    first_column: int,
) -> None:
    columns, elsewhere = _columns(labels, first_column, logits.shape[1])
    taken = at_label.masked_fill(elsewhere, 0.0).neg()
    for part in _chunks(logits):
        chunk = (logits[part].to(largest.dtype) - largest[part, None]).exp_()
        chunk.mul_(factor[part, None])
        if uniform is not None:
            chunk.sub_(uniform[part, None])
        logits[part] = chunk.scatter_add_(1, columns[part, None], taken[part, None])


def _fake_sums(
    logits: Tensor, labels: Tensor, first_column: int, with_sum: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    largest = logits.new_empty(labels.shape, dtype=torch.float32)
    added = logits.new_empty(labels.shape[0] if with_sum else 0, dtype=torch.float32)
    return largest, torch.empty_like(largest), torch.empty_like(largest), added


def _fake_gradient(*args: object) -> None:
    return None


library.define(
    "cross_entropy_sums(Tensor logits, Tensor labels, int first_column, bool with_sum) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_sums,
    fake=_fake_sums,
)
library.define(
    "cross_entropy_gradient_(Tensor(a!) logits, Tensor labels, Tensor largest, Tensor factor, "
    "Tensor at_label, Tensor? uniform, int first_column) -> ()",
    reference=_reference_gradient,
    fake=_fake_gradient,
)

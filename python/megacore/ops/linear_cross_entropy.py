"""Output projection and cross entropy together, a chunk of tokens at a time.

The logits of all tokens never exist. There are two forms:

* `linear_cross_entropy` makes a chunk's gradient of its logits at once. That takes the factor of
  every token's loss before backward, and gives one number to differentiate, their weighted sum.
* `linear_token_losses` gives the loss of every token, to be differentiated like any other tensor.
  Backward multiplies again for the logits: one product more than the whole matrix would need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megacore.ops.cross_entropy import (
    PLAIN,
    LogitSums,
    LossTerms,
    check_labels,
    cross_entropy_reference,
    logit_sums,
)
from megacore.ops.linear import add_weight_product, forward_product, input_product

Exchange = Callable[[LogitSums], LogitSums]

# Chunks that the tokens are cut into, so that logits take this share of their whole size.
CHUNKS = 16


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_weights: Tensor,
        terms: LossTerms,
        vocab_size: int,
        first_column: int,
        exchange: Exchange | None,
    ) -> tuple[Tensor, Tensor]:
        compute = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        losses = torch.empty(labels.shape, dtype=compute, device=hidden.device)
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = None
        if needs_weight:
            dweight = torch.zeros(weight.shape, dtype=compute, device=hidden.device)
        rows = max(1, hidden.shape[0] // CHUNKS)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = forward_product(hidden[part], weight)
            sums = logit_sums(
                logits,
                labels[part],
                first_column=first_column,
                with_sum=terms.label_smoothing > 0.0,
                compute=compute,
            )
            if exchange is not None:
                sums = exchange(sums)
            losses[part] = terms.losses(sums, labels[part], vocab_size)
            if not needs_hidden and not needs_weight:
                continue
            terms.write_gradient(
                logits,
                labels[part],
                sums,
                token_weights[part],
                vocab_size=vocab_size,
                first_column=first_column,
            )
            if dhidden is not None:
                dhidden[part] = input_product(logits, weight)
            if dweight is not None:
                add_weight_product(dweight, hidden[part], logits)
        ctx.save_for_backward(dhidden, dweight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return (losses * token_weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        grad = grads[0]
        if grad is None:
            return (None, None, *nothing)
        dhidden, dweight = ctx.saved_tensors
        if dhidden is not None:
            dhidden = dhidden * grad  # a scalar: the product has the dtype of hidden
        if dweight is not None:
            dweight = (dweight * grad).to(ctx.weight_dtype)
        return (dhidden, dweight, *nothing)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        terms: LossTerms,
        vocab_size: int,
        first_column: int,
        exchange: Exchange | None,
    ) -> Tensor:
        compute = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with_sum = terms.label_smoothing > 0.0
        parts = [
            logit_sums(
                forward_product(hidden[part], weight),
                labels[part],
                first_column=first_column,
                with_sum=with_sum,
                compute=compute,
            )
            for part in _chunks(hidden.shape[0])
        ]
        sums = LogitSums(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        if exchange is not None:
            sums = exchange(sums)
        ctx.save_for_backward(hidden, weight, labels, *sums)
        ctx.terms, ctx.vocab_size, ctx.first_column = terms, vocab_size, first_column
        return terms.losses(sums, labels, vocab_size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, *sums = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if needs_hidden else None
        dweight = None
        if needs_weight:
            dweight = torch.zeros(weight.shape, dtype=grads[0].dtype, device=weight.device)
        for part in _chunks(hidden.shape[0]):
            logits = forward_product(hidden[part], weight)
            ctx.terms.write_gradient(
                logits,
                labels[part],
                LogitSums(*(s[part] for s in sums)),
                grads[0][part],
                vocab_size=ctx.vocab_size,
                first_column=ctx.first_column,
            )
            if dhidden is not None:
                dhidden[part] = input_product(logits, weight)
            if dweight is not None:
                add_weight_product(dweight, hidden[part], logits)
        if dweight is not None:
            dweight = dweight.to(weight.dtype)
        return (dhidden, dweight, *(None,) * 5)


def _chunks(count: int) -> list[slice]:
    """`CHUNKS` pieces of `count` tokens, the last ones shorter; one piece where there are none."""
    rows = max(1, -(-count // CHUNKS))
    return [slice(start, start + rows) for start in range(0, max(1, count), rows)]


def linear_token_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    terms: LossTerms = PLAIN,
    vocab_size: int | None = None,
    first_column: int = 0,
    exchange: Exchange | None = None,
) -> Tensor:
    """Cross entropies [M] of `hidden @ weight.T`, which is never held whole.

    Holds the logits of one sixteenth of the tokens, in forward and in backward, and in backward
    the gradient of `weight` in float32.

    Args:
        hidden: [M, H] floating point.
        weight: [V, H] dtype of hidden: all rows of the projection, or this process's.
        labels: [M] int64, each in [0, vocab_size) or the ignored one.
        terms: Label smoothing, z-loss and which label is ignored.
        vocab_size: Rows of the whole projection; None for those of `weight`.
        first_column: Number of the first row of `weight`.
        exchange: Puts the sums of this process's columns together with those of the others;
            None where `weight` is whole. The gradient of `hidden` is then this process's share.

    Returns:
        [M] float32 (float64 for float64).

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    fits = hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or labels.shape != hidden.shape[:1]:
        raise RuntimeError(
            f"expected hidden [M, H], weight [V, H] and labels [M], found hidden: "
            f"{list(hidden.shape)}, weight: {list(weight.shape)}, labels: {list(labels.shape)}"
        )
    check_labels(labels, vocab_size, terms)
    losses = _TokenLosses.apply(hidden, weight, labels, terms, vocab_size, first_column, exchange)
    assert isinstance(losses, Tensor)
    return losses


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    terms: LossTerms = PLAIN,
    vocab_size: int | None = None,
    first_column: int = 0,
    exchange: Exchange | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the cross entropies of `hidden @ weight.T`, which is never held whole.

    Beside the gradients (that of `weight` is summed in float32) it holds the logits of
    one sixteenth of the tokens.

    Args:
        hidden: [M, H] floating point.
        weight: [V, H] dtype of hidden: all rows of the projection, or this process's.
        labels: [M] int64, each in [0, vocab_size) or the ignored one.
        token_weights: [M] float32 factors of the losses (float64 with float64); None for ones.
        terms: Label smoothing, z-loss and which label is ignored.
        vocab_size: Rows of the whole projection; None for those of `weight`.
        first_column: Number of the first row of `weight`.
        exchange: Puts the sums of this process's columns together with those of the others;
            None where `weight` is whole. The gradient of `hidden` is then this process's share.

    Returns:
        The sum, a scalar, and the losses [M] without a gradient; float32 (float64 for float64).

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    compute = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if token_weights is None:
        token_weights = torch.ones(labels.shape, dtype=compute, device=hidden.device)
    fits = hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or labels.shape != hidden.shape[:1] or token_weights.shape != labels.shape:
        raise RuntimeError(
            f"expected hidden [M, H], weight [V, H], labels [M] and token_weights [M], found "
            f"hidden: {list(hidden.shape)}, weight: {list(weight.shape)}, "
            f"labels: {list(labels.shape)}, token_weights: {list(token_weights.shape)}"
        )
    check_labels(labels, vocab_size, terms)
    total, losses = _LinearCrossEntropy.apply(
        hidden, weight, labels, token_weights, terms, vocab_size, first_column, exchange
    )
    return total, losses


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    token_weights: Tensor | None = None,
    terms: LossTerms = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` over a whole vocabulary in plain PyTorch, with all logits."""
    losses = cross_entropy_reference(hidden @ weight.t(), labels, terms=terms)
    return (losses if token_weights is None else losses * token_weights).sum(), losses.detach()

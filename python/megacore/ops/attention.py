"""Attention that never holds the scores, with its gradients and the logarithms of its sums.

The kernels are `csrc/kernels/attention.*`; they keep scores, weights and sums in float32. Dropout
draws for weight (b, h, i, j) the number of that element of a contiguous [B, H, Sq, Sk] (see
`megacore.ops.dropout_add`), so that no mask is kept.
Source: Dao, "FlashAttention-2", 2023.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megacore.ops import library
from megacore.ops.dropout_add import dropout_add_reference
from megacore.ops.softmax import seen

MAX_HEAD = 256


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None = None,
    scale: float | None = None,
    drop: float = 0.0,
    seed: int = 0,
    documents: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the keys that each query sees.

    Args:
        q: [B, Sq, G, R, D], R query heads per group; float32, bfloat16 or float16 with D up to
            `MAX_HEAD`; float64 takes the reference. Any strides but of the last axis.
        k: [B, Sk, G, D].
        v: [B, Sk, G, D].
        causal: Query i sees keys 0 to i + Sk - Sq; else all.
        window: With `causal`, only the last so many of them.
        scale: Factor of the scores; None for 1 / sqrt(D).
        drop: Drop probability of the weights, rounded to a multiple of 2^-24.
        seed: Number of the random stream.
        documents: [n + 1] int64 from 0 to Sk: the tokens of one sequence (B = 1, Sq = Sk) are n
            documents behind each other, and see their own document only.
        key_lengths: [B] int64: sequence b has only so many keys, and "Sk" above is that number.

    Returns:
        Output [B, Sq, G, R, D] in the dtype of q, zero where nothing is seen; and the logarithm of
        the sum of the exponentials of the scores, [B, Sq, G, R] float32 (float64 for float64),
        -inf where nothing is seen, which has no gradient.

    Raises:
        RuntimeError: A tensor or a number does not fit; the message names it.
    """
    settings = (
        documents,
        key_lengths,
        causal,
        window or 0,
        1.0 / math.sqrt(q.shape[-1]) if scale is None else scale,
        drop,
        seed,
    )
    if q.dtype == torch.float64:
        return _reference(q, k, v, *settings)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, log_sum = torch.ops.megacore.attention_forward(q, k, v, *settings)
    return out, log_sum


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What some keys contribute to the gradients of an attention over more keys.

    Args:
        dout: Gradient of the output for all keys, [B, Sq, G, R, D].
        q: As in `attention`.
        k: Those keys, [B, Sk, G, D].
        v: [B, Sk, G, D].
        out: Output for all keys, [B, Sq, G, R, D].
        log_sum: That of all keys, [B, Sq, G, R] float32.
        causal: As in `attention`, for the given keys.
        scale: As in `attention`.

    Returns:
        dq [B, Sq, G, R, D], dk and dv [B, Sk, G, D], in the dtype of q.
    """
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    dout, q, k, v, out = (x if x.stride(-1) == 1 else x.contiguous() for x in (dout, q, k, v, out))
    dq, dk, dv = torch.ops.megacore.attention_backward(
        dout, q, k, v, out, log_sum.contiguous(), None, None, causal, 0, factor, 0.0, 0
    )
    return dq, dk, dv


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, **settings: Any
) -> tuple[Tensor, Tensor]:
    """`attention` in plain PyTorch, in float32 or the wider dtype of q; holds all weights."""
    scale = settings.get("scale")
    return _reference(
        q,
        k,
        v,
        settings.get("documents"),
        settings.get("key_lengths"),
        causal,
        settings.get("window") or 0,
        1.0 / math.sqrt(q.shape[-1]) if scale is None else scale,
        settings.get("drop", 0.0),
        settings.get("seed", 0),
    )


def _visible(
    q: Tensor,
    k: Tensor,
    documents: Tensor | None,
    key_lengths: Tensor | None,
    causal: bool,
    window: int,
) -> Tensor:
    """Which keys the queries see, [B or 1, Sq, Sk] bool."""
    queries, keys = q.shape[1], k.shape[1]
    lengths = [keys] if key_lengths is None else key_lengths.tolist()
    parts = []
    for length in lengths:
        part = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        if causal:
            part = seen(queries, keys, length - queries, window, q.device)
        parts.append(part & (torch.arange(keys, device=q.device) < length))
    visible = torch.stack(parts)
    if documents is not None:
        number = torch.searchsorted(documents, torch.arange(keys, device=q.device), right=True)
        visible = visible & (number[:, None] == number)
    return visible


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    key_lengths: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    drop: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    if window and not causal:
        raise RuntimeError("window: only with causal")
    dtype = q.dtype if q.dtype == torch.float64 else torch.float32
    visible = _visible(q, k, documents, key_lengths, causal, window)[:, None, None]
    scores = torch.einsum("bigrd,bjgd->bgrij", q.to(dtype), k.to(dtype)) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    nothing = ~visible.any(-1)
    log_sum = torch.logsumexp(scores, -1)
    # Weights of rows that see nothing would be NaN, and so would be their gradients.
    shift = log_sum.masked_fill(nothing, 0.0)
    weights = torch.exp(scores - shift[..., None])
    if drop > 0.0:
        weights = dropout_add_reference(weights, None, drop=drop, seed=seed)
    out = torch.einsum("bgrij,bjgd->bigrd", weights, v.to(dtype)).to(q.dtype)
    return out.contiguous(), log_sum.detach().permute(0, 3, 1, 2).contiguous()


def _reference_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    documents, key_lengths, causal, window, scale, drop, seed = settings
    dtype = torch.float32
    visible = _visible(q, k, documents, key_lengths, causal, window)[:, None, None]
    gradient, queries = dout.to(dtype), q.to(dtype) * scale
    scores = torch.einsum("bigrd,bjgd->bgrij", queries, k.to(dtype))
    sums = log_sum.permute(0, 2, 3, 1)
    sums = sums.masked_fill(sums == float("-inf"), 0.0)
    weights = torch.exp(scores - sums[..., None]).masked_fill(~visible, 0.0)
    slopes = torch.einsum("bigrd,bjgd->bgrij", gradient, v.to(dtype))
    kept = weights
    if drop > 0.0:
        kept = dropout_add_reference(weights, None, drop=drop, seed=seed)
        slopes = dropout_add_reference(slopes, None, drop=drop, seed=seed)
    delta = (gradient * out.to(dtype)).sum(-1).permute(0, 2, 3, 1)
    steps = weights * (slopes - delta[..., None])
    dq = torch.einsum("bgrij,bjgd->bigrd", steps, k.to(dtype)) * scale
    dk = torch.einsum("bgrij,bigrd->bjgd", steps, queries)
    dv = torch.einsum("bgrij,bigrd->bjgd", kept, gradient)
    return tuple(x.to(q.dtype).contiguous() for x in (dq, dk, dv))  # type: ignore[return-value]


def _fake(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, key_lengths, *ctx.settings = inputs
    out, log_sum = output
    ctx.mark_non_differentiable(log_sum)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, log_sum, documents, key_lengths)


def _backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 10
    *saved, documents, key_lengths = ctx.saved_tensors
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    gradients = torch.ops.megacore.attention_backward(
        dout, *saved, documents, key_lengths, *ctx.settings
    )
    return (*gradients, *(None,) * 7)


_SETTINGS = (
    "Tensor? documents, Tensor? key_lengths, bool causal, int window, float scale, float drop, "
    "int seed"
)
library.define(
    f"attention_forward(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
)
library.define(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum, "
    f"{_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
)
library.register_autograd("attention_forward", _backward, setup_context=_setup_context)

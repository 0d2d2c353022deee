"""Attention of some queries to a block of keys, as a part of a larger attention.

A softmax over many keys can be put together from softmaxes over blocks of them, when each comes
with the logarithm of the sum of its exponentials (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Liu et al., "Ring Attention with Blockwise Transformers", 2023).
`attention_block` gives both, `merge_block` puts together, and `attention_block_backward` is the
gradient of one block given the result for all keys.

Which formulation is taken where:

* on a CPU without dropout: megacore's kernel (`megacore.ops.attention`); float64 takes PyTorch's;
* on a GPU without dropout, float16 and bfloat16, D a multiple of 8 up to 256: PyTorch's
  FlashAttention kernel. No GPU has run this yet; its calls are checked on the meta device;
* otherwise: explicit products over a few query rows at a time, in float32 (float64 for float64).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.layers.dropout_attention import keep_mask
from megacore.layers.native_attention import kernel_takes
from megacore.ops.attention import attention, attention_backward

# Scores that the explicit formulation holds at a time.
_MAX_SCORES = 1 << 22

_CPU_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_GPU_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention
_GPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


@dataclass(frozen=True, kw_only=True)
class BlockDropout:
    """Dropout of the attention weights of one block.

    Attributes:
        drop: Drop probability.
        seed: Of the block's own random stream; forward and backward draw the same mask from it.
    """

    drop: float
    seed: int


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Dtype of sums over blocks: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def attention_block(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, dropout: BlockDropout | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax over the keys of the block only, and what is needed to add other blocks.

    Args:
        q: [B, Sq, G, R, D], R query heads per key/value head.
        k: [B, Sk, G, D].
        v: [B, Sk, G, D].
        causal: Query i sees keys 0 to i (with Sq = Sk); otherwise every query sees every key.
        dropout: Dropout of the weights, or None.

    Returns:
        Output [B, Sq, G, R, D], and the logarithm of the sum of the exponentials of the scores
        before dropout, [B, Sq, G, R] in `accumulation_dtype`.
    """
    if dropout is not None:
        return _explicit(q, k, v, causal, dropout)
    if kernel_takes(q):
        return attention(q, k, v, causal=causal)
    if q.device.type == "cpu":
        parts = [_cpu(part, k, v, causal) for part in q.unbind(3)]
        outs, sums = zip(*parts, strict=True)
        return torch.stack(outs, dim=3), torch.stack(sums, dim=3)
    if _gpu_kernel_takes(q):
        heads = q.flatten(2, 3)
        out, sums_, *_ = _GPU_FORWARD(*_heads_first(heads, k, v), 0.0, causal)
        return out.transpose(1, 2).reshape(q.shape), sums_.transpose(1, 2).reshape(q.shape[:-1])
    return _explicit(q, k, v, causal, None)


def merge_block(out: Tensor, log_sum: Tensor, block: tuple[Tensor, Tensor]) -> None:
    """Add a block's keys to a result in place.

    Args:
        out: [..., D] in `accumulation_dtype`.
        log_sum: [...], of the same dtype.
        block: What `attention_block` gave.
    """
    block_out, block_sum = block
    total = torch.logaddexp(log_sum, block_sum)
    out.mul_((log_sum - total).exp_()[..., None])
    out.add_(block_out * (block_sum - total).exp_()[..., None])
    log_sum.copy_(total)


def attention_block_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *,
    causal: bool,
    dropout: BlockDropout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the keys of one block contribute to the gradients.

    Args:
        grad: Gradient of the output for all keys, [B, Sq, G, R, D].
        q: As in `attention_block`.
        k: As in `attention_block`.
        v: As in `attention_block`.
        out: Output for all keys, in the dtype of q.
        log_sum: That of all keys, [B, Sq, G, R].
        causal: As in `attention_block`.
        dropout: As in `attention_block`.

    Returns:
        Contributions to dq [B, Sq, G, R, D], dk and dv [B, Sk, G, D], to be added in
        `accumulation_dtype`.
    """
    if dropout is not None:
        return _explicit_backward(grad, q, k, v, out, log_sum, causal, dropout)
    if kernel_takes(q):
        return attention_backward(grad, q, k, v, out, log_sum, causal=causal)
    if q.device.type == "cpu":
        return _cpu_backward(grad, q, k, v, out, log_sum, causal)
    if _gpu_kernel_takes(q):
        return _gpu_backward(grad, q, k, v, out, log_sum, causal)
    return _explicit_backward(grad, q, k, v, out, log_sum, causal, None)


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """PyTorch's kernel for q, k, v [B, S, heads, D]: output and log-sum [B, Sq, heads]."""
    out, log_sum = _CPU_FORWARD(*_heads_first(q, k, v), 0.0, causal)
    return out.transpose(1, 2), log_sum.transpose(1, 2)


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(q)
    d_qs: list[Tensor] = []
    d_k = d_v = torch.empty(0)
    for ratio in range(q.shape[3]):
        part_grad, part_q, part_out = (x[:, :, :, ratio] for x in (grad, q, out))
        first = _heads_first(part_grad, part_q, k, v, part_out)
        # The kernel reads the log-sums with the strides that its forward gives them.
        sums = log_sum[:, :, :, ratio].contiguous().transpose(1, 2)
        parts = _heads_first(*_CPU_BACKWARD(*first, sums, 0.0, causal))
        d_qs.append(parts[0])
        if q.shape[3] == 1:
            d_k, d_v = parts[1:]
        elif ratio == 0:
            d_k, d_v = parts[1].to(dtype), parts[2].to(dtype)
        else:
            d_k, d_v = d_k.add_(parts[1]), d_v.add_(parts[2])
    return torch.stack(d_qs, dim=3), d_k, d_v


def _gpu_kernel_takes(q: Tensor) -> bool:
    width = q.shape[-1]
    return q.dtype in (torch.float16, torch.bfloat16) and width % 8 == 0 and width <= 256


def _gpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_heads, q_heads, out_heads = (x.flatten(2, 3) for x in (grad, q, out))
    # Without dropout the random state, two integers, is not read.
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)
    d_q, d_k, d_v = _heads_first(
        *_GPU_BACKWARD(
            *_heads_first(grad_heads, q_heads, k, v, out_heads),
            log_sum.flatten(2, 3).transpose(1, 2).contiguous(),
            None,
            None,
            q.shape[1],
            k.shape[1],
            0.0,
            causal,
            unused,
            unused,
        )
    )
    return d_q.reshape(q.shape), d_k, d_v


@dataclass(frozen=True)
class _Rows:
    """A few query rows of the explicit formulation, all query heads of a group together."""

    part: slice
    keys: int
    scores: Tensor
    keep: Tensor | None
    rescale: float


def _explicit_rows(
    q: Tensor, keys: Tensor, causal: bool, dropout: BlockDropout | None
) -> Iterator[_Rows]:
    """Scaled scores [B * G, R * n, visible keys] of n rows after the other, hidden ones -inf."""
    batch, length, groups, ratio, width = q.shape
    count = max(1, _MAX_SCORES // max(1, batch * groups * ratio * keys.shape[1]))
    generator = None
    if dropout is not None:
        generator = torch.Generator(q.device)
        generator.manual_seed(dropout.seed)
    for first in range(0, length, count):
        part = slice(first, min(first + count, length))
        seen = part.stop if causal else keys.shape[1]
        rows = _group_rows(q[:, part]).to(keys.dtype)
        scores = torch.bmm(rows, keys[:, :seen].transpose(1, 2)).mul_(1.0 / math.sqrt(width))
        if causal:
            hidden = torch.ones(part.stop - first, seen, dtype=torch.bool, device=q.device)
            scores.masked_fill_(hidden.triu_(first + 1).repeat(ratio, 1), float("-inf"))
        keep, rescale = None, 1.0
        if dropout is not None:
            keep, kept = keep_mask(scores.shape, dropout.drop, generator)
            rescale = 1.0 / kept if kept > 0.0 else 0.0
        yield _Rows(part, seen, scores, keep, rescale)


def _group_rows(x: Tensor) -> Tensor:
    """[B, n, G, R, ...] as [B * G, R * n, ...]."""
    batch, count, groups, ratio = x.shape[:4]
    return x.movedim(1, 3).reshape(batch * groups, ratio * count, *x.shape[4:])


def _ungroup_rows(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_group_rows`, for a tensor shaped as `like` [B, n, G, R, ...]."""
    batch, count, groups, ratio = like.shape[:4]
    return x.view(batch, groups, ratio, count, *x.shape[2:]).movedim(3, 1)


def _group_keys(x: Tensor) -> Tensor:
    """[B, Sk, G, D] as [B * G, Sk, D] in the dtype of sums."""
    return x.transpose(1, 2).flatten(0, 1).to(accumulation_dtype(x))


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: BlockDropout | None
) -> tuple[Tensor, Tensor]:
    keys, values = _group_keys(k), _group_keys(v)
    out = torch.empty(q.shape, dtype=keys.dtype, device=q.device)
    log_sum = torch.empty(q.shape[:-1], dtype=keys.dtype, device=q.device)
    for rows in _explicit_rows(q, keys, causal, dropout):
        sums = torch.logsumexp(rows.scores, -1)
        weights = (rows.scores - sums[..., None]).exp_()
        if rows.keep is not None:
            weights.mul_(rows.keep).mul_(rows.rescale)
        target = out[:, rows.part]
        target.copy_(_ungroup_rows(torch.bmm(weights, values[:, : rows.keys]), target))
        log_sum[:, rows.part] = _ungroup_rows(sums, target)
    return out, log_sum


def _explicit_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    causal: bool,
    dropout: BlockDropout | None,
) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _group_keys(k), _group_keys(v)
    dtype = keys.dtype
    d_q = torch.empty(q.shape, dtype=dtype, device=q.device)
    d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
    for rows in _explicit_rows(q, keys, causal, dropout):
        part, seen = rows.part, rows.keys
        grads = _group_rows(grad[:, part]).to(dtype)
        # Also with dropout this is the sum over the keys of weight times its gradient.
        delta = (grads * _group_rows(out[:, part])).sum(-1, keepdim=True)
        weights = (rows.scores - _group_rows(log_sum[:, part])[..., None]).exp_()
        d_weights = torch.bmm(grads, values[:, :seen].transpose(1, 2))
        dropped = weights
        if rows.keep is not None:
            dropped = (weights * rows.keep).mul_(rows.rescale)
            d_weights.mul_(rows.keep).mul_(rows.rescale)
        d_values[:, :seen] += torch.bmm(dropped.transpose(1, 2), grads)
        d_scores = d_weights.sub_(delta).mul_(weights).mul_(1.0 / math.sqrt(q.shape[-1]))
        target = d_q[:, part]
        target.copy_(_ungroup_rows(torch.bmm(d_scores, keys[:, :seen]), target))
        d_keys[:, :seen] += torch.bmm(d_scores.transpose(1, 2), _group_rows(q[:, part]).to(dtype))
    shape = (k.shape[0], k.shape[2], k.shape[1], k.shape[3])
    return d_q, d_keys.view(shape).transpose(1, 2), d_values.view(shape).transpose(1, 2)

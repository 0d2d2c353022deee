"""Cross entropy per token over a large vocabulary, with little memory.

`torch.nn.functional.cross_entropy` on float32 copies of bfloat16 logits holds five matrices of
[tokens, V] at its peak, most of them in float32. Here the logits are read in chunks of rows that
stay in cache, and the gradient is written over the logits themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Elements of one float32 chunk: 1 MB, inside the second-level cache of a CPU core.
_CPU_CHUNK_ELEMENTS = 1 << 18
# On a GPU a chunk only bounds memory (256 MB).
_GPU_CHUNK_ELEMENTS = 1 << 26


def rows_per_chunk(logits: Tensor) -> int:
    """Rows of `logits` [M, V] that are worked on at a time."""
    elements = _CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    return max(1, elements // logits.shape[1])


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, compute: torch.dtype) -> Tensor:
        loss = torch.empty(labels.shape, dtype=compute, device=logits.device)
        # Kept apart, not as one log-sum: the difference to the largest logit is exact or nearly.
        largest, total = torch.empty_like(loss), torch.empty_like(loss)
        rows = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], rows):
            part = slice(start, start + rows)
            chunk = logits[part].to(compute)
            torch.amax(chunk, dim=1, out=largest[part])
            chunk = chunk - largest[part, None]
            chosen = chunk.gather(1, labels[part, None])[:, 0]
            torch.sum(chunk.exp_(), dim=1, out=total[part])
            torch.sub(total[part].log(), chosen, out=loss[part])
        ctx.save_for_backward(labels, largest, total)
        ctx.logits = logits
        return loss.float() if compute == torch.float16 else loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        labels, largest, total = ctx.saved_tensors
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise RuntimeError("cross entropy: a second backward; its logits were overwritten")
        grad = grads[0].to(largest.dtype)
        rows = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], rows):
            part = slice(start, start + rows)
            chunk = (logits[part].to(largest.dtype) - largest[part, None]).exp_()
            chunk.mul_((grad[part] / total[part])[:, None])
            chunk.scatter_add_(1, labels[part, None], -grad[part, None])
            logits[part] = chunk
        return logits, None, None


def cross_entropy(logits: Tensor, labels: Tensor, *, in_half: bool = False) -> Tensor:
    """-log softmax(logits)[label] of every row, in float32 (float64 for float64 logits).

    The logits are consumed: backward writes their gradient over them, so nobody else may use
    them, and backward can run only once.

    Args:
        logits: [M, V] of any floating dtype, contiguous.
        labels: [M] int64, each in [0, V).
        in_half: Compute in float16 when the logits are float16.

    Returns:
        Losses [M].
    """
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if in_half and logits.dtype == torch.float16:
        compute = torch.float16
    result = _CrossEntropy.apply(logits, labels, compute)
    assert isinstance(result, Tensor)
    return result


class TokenLoss(nn.Module):
    """Cross entropy of every token of a batch.

    Args:
        in_half: Compute in float16 when the logits are float16.
    """

    def __init__(self, *, in_half: bool) -> None:
        super().__init__()
        self.in_half = in_half

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses [B, S] of `logits` [B, S, V], which are consumed, for `labels` [B, S]."""
        losses = cross_entropy(logits.flatten(0, 1), labels.reshape(-1), in_half=self.in_half)
        return losses.view(labels.shape)

"""Cross entropy of every token over a large vocabulary, with little memory.

`torch.nn.functional.cross_entropy` on float32 copies of bfloat16 logits holds five matrices of
[tokens, V] at its peak, most of them in float32. Here the logits are read where they are, and the
gradient is written over them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacore.ops import cross_entropy as ops
from megacore.ops.linear_cross_entropy import linear_token_losses


def loss_dtype(logits: Tensor, *, in_half: bool) -> torch.dtype:
    """Dtype in which losses are computed: float32, or that of the logits for float64 and, if
    asked, float16."""
    if logits.dtype == torch.float64 or (in_half and logits.dtype == torch.float16):
        return logits.dtype
    return torch.float32


def cross_entropy(logits: Tensor, labels: Tensor, *, in_half: bool = False) -> Tensor:
    """Losses [M] of logits [M, V], which are consumed, and labels [M]; see `ops.cross_entropy`."""
    return ops.cross_entropy(logits, labels, compute=loss_dtype(logits, in_half=in_half))


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


class LinearTokenLoss(nn.Module):
    """Cross entropy of every token of a batch, from hidden states: all logits never exist."""

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Losses [B, S] of `hidden` [B, S, H] times `weight` [V, H] for `labels` [B, S]."""
        losses = linear_token_losses(hidden.flatten(0, 1), weight, labels.reshape(-1))
        return losses.view(labels.shape)

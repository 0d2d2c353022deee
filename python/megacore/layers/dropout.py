"""Dropout as a module, so that a parallel run can give it a random stream of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero elements with probability `p` and scale the others by 1 / (1 - p), in training only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop from `x` [...]; outside training or with p = 0 nothing is drawn."""
        return F.dropout(x, self.p) if self.training and self.p > 0.0 else x

"""Dropout as a module, so that a parallel run can give it a random stream of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megacore.ops.dropout_add import dropout_add


class Dropout(nn.Module):
    """Zero elements with probability `p` and scale the others by 1 / (1 - p), in training only.

    Args:
        p: Probability of a zero.
        fused: Drop and add the residual stream in one pass that keeps no mask. A call then draws
            one number from the CPU's default generator, whatever the device: the number of its
            random stream. Otherwise PyTorch's dropout draws from the generator of the device.
    """

    def __init__(self, p: float, *, fused: bool = True) -> None:
        super().__init__()
        self.p = p
        self.fused = fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`residual` + dropout(`x`), or the dropout alone; of their common dtype.

        Outside training or with p = 0 nothing is drawn.

        Args:
            x: [...] floating point.
            residual: [...] of the same shape, or None.
        """
        if not self.training or self.p == 0.0:
            return x if residual is None else residual + x
        if not self.fused:
            dropped = F.dropout(x, self.p)
            return dropped if residual is None else residual + dropped
        if residual is not None and residual.dtype != x.dtype:
            common = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(common), residual.to(common)
        return dropout_add(x, residual, drop=self.p, seed=_draw_seed())


def _draw_seed() -> int:
    """A number of the CPU's default generator: recompute and other streams put it in its place."""
    return int(torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device="cpu"))

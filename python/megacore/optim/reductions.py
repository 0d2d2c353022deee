"""Norms and counts over flat buffers, independent of the number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megacore.ops import square_sum as ops


def square_sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum of the squares over all tensors, [] float64; infinite or NaN if any value is.

    Args:
        parts: At least one tensor [n], all on one device.
    """
    return torch.stack([ops.square_sum(part) for part in parts]).sum()


def count_zeros(flat: Tensor) -> Tensor:
    """How many elements of a flat tensor are exactly zero, [] int64."""
    return flat.numel() - torch.count_nonzero(flat)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Factor that brings a gradient of this norm to at most `max_norm`; 0 switches clipping off."""
    if max_norm <= 0.0:
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))

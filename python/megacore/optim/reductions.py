"""Norms and counts over flat buffers, independent of the number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A plain reduction of a whole buffer is cut into as many pieces as there are threads, so its last
# bits depend on them. Rows of this length are each reduced by one thread; the row results, in
# float64, are reduced the same way until few enough are left for one thread.
ROW = 2048


def flat_norm(flat: Tensor) -> Tensor:
    """L2 norm of a flat buffer, as a float64 scalar on its device.

    Args:
        flat: [n]. A float32 magnitude above 1.8e19 gives infinity.

    Determinism: the same for the same values, on any number of threads.
    """
    while flat.numel() > ROW:
        whole = flat.numel() // ROW * ROW
        rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double()
        rest = torch.linalg.vector_norm(flat[whole:].double())
        flat = torch.cat([rows, rest.view(1)])
    return torch.linalg.vector_norm(flat.double())


def square_sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum of the squares over all tensors, [] float64; infinite or NaN if any value is.

    Args:
        parts: At least one tensor [n], all on one device.
    """
    return torch.stack([flat_norm(part) for part in parts]).square().sum()


def count_zeros(flat: Tensor) -> Tensor:
    """How many elements of a flat tensor are exactly zero, [] int64."""
    return flat.numel() - torch.count_nonzero(flat)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Factor that brings a gradient of this norm to at most `max_norm`; 0 switches clipping off."""
    if max_norm <= 0.0:
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))

"""Models whose every parameter matters."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomize_vectors(model: nn.Module, *, seed: int) -> None:
    """Add noise to norms and biases, which would start as ones and zeros and hide faults.

    Args:
        model: Changed in place.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)

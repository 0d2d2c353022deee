"""Rows of different lengths in one batch."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_tokens(
    lengths: Tensor | None, longest: int, device: torch.device | str
) -> Tensor | None:
    """Which tokens of a padded batch are real: [B, longest] bool; None when all are.

    Args:
        lengths: [B] integers in [1, longest], on the host or a device; None: no row is padded.
        longest: Tokens of a row with its padding.
        device: Of the result.
    """
    if lengths is None or bool((lengths >= longest).all()):
        return None
    places = torch.arange(longest, device=device)
    return places < lengths.to(device, non_blocking=True)[:, None]

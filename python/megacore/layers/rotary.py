"""Rotary position embedding: each pair of lanes of a head is turned by an angle that grows with
the position.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), 3.2.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megacore.layers.rotary_scaling import LongRopeScaling, frequencies
from megacore.layers.spec import RotarySpec
from megacore.ops.rotary import rotary, rotary_split


class RotaryTable(NamedTuple):
    """Cosine and sine of every angle, [B or 1, S, 1, dim / 2]; float32, or float64 if asked."""

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine as rows of all tokens, [B * S or S, dim / 2]."""
        half = self.cos.shape[-1]
        return self.cos.reshape(-1, half), self.sin.reshape(-1, half)


def rotary_table(
    position_ids: Tensor, spec: RotarySpec, *, dtype: torch.dtype, length: int | None = None
) -> RotaryTable:
    """Angles for `position_ids` [B or 1, S]; computed in float32, or in float64 for float64.

    Args:
        position_ids: int64.
        spec: Lanes, wavelengths and scaling.
        dtype: That of the model.
        length: Tokens that the sequence is going to have; default each row's largest position
            plus one. Only a scaling that depends on the length reads it.
    """
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    seen: Tensor | int = 0 if length is None else length
    if length is None and isinstance(spec.scaling, LongRopeScaling):
        # Stays on the device: nothing waits for it.
        seen = position_ids.amax(-1)[:, None, None] + 1
    lanes, factor = frequencies(
        spec.dim,
        spec.base,
        spec.scaling,
        length=seen,
        dtype=precision,
        device=position_ids.device,
    )
    positions = position_ids.to(precision) / spec.interpolation
    angles = (positions[..., None] * lanes)[:, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return RotaryTable(cos, sin, spec.interleaved)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Apply `table` to `x` [B, S, heads, D]; lanes beyond the rotated ones pass unchanged."""
    return rotary(x, *table.angles(), interleaved=table.interleaved)


def rotate_split(qkv: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor, Tensor]:
    """Cut `qkv` [B, S, G, R + 2, D] into turned q and k and plain v, in one pass.

    Returns:
        q [B, S, G, R, D], k and v [B, S, G, D].
    """
    return rotary_split(qkv, *table.angles(), interleaved=table.interleaved)

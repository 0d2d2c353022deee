"""Rotary position embedding: each pair of lanes of a head is turned by an angle that grows with
the position.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), 3.2.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megacore.layers.rotary_scaling import LongRopeScaling, frequencies
from megacore.layers.spec import RotarySpec


class RotaryTable(NamedTuple):
    """Cosine and sine of every angle, [B or 1, S, 1, dim / 2]; float32, or float64 if asked."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


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


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] lanes of `x` [B, S, heads, D] into a new tensor."""
    half = cos.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if interleaved:
        first, second = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        out_first, out_second = out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2]
    else:
        first, second = x[..., :half], x[..., half : 2 * half]
        out_first, out_second = out[..., :half], out[..., half : 2 * half]
    # Mixed-dtype products promote to float32: one rounding per lane, at the copy into `out`.
    out_first.copy_(torch.addcmul(first * cos, second, sin, value=-1))
    out_second.copy_(torch.addcmul(second * cos, first, sin))
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is the rotation by the opposite angle (and factor of the table)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin, ctx.interleaved), None, None, None


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Apply `table` to `x` [B, S, heads, D]; lanes beyond the rotated ones pass unchanged."""
    result = _Rotate.apply(x, table.cos, table.sin, table.interleaved)
    assert isinstance(result, Tensor)
    return result

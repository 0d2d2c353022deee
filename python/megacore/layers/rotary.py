"""Rotary position embedding: each pair of lanes of a head is turned by an angle that grows with
the position.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), 3.2.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megacore.layers.spec import RotarySpec


class RotaryTable(NamedTuple):
    """Cosine and sine of every angle, [B or 1, S, 1, dim / 2]; float32, or float64 if asked."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


def rotary_table(position_ids: Tensor, spec: RotarySpec, *, dtype: torch.dtype) -> RotaryTable:
    """Angles for `position_ids` [B or 1, S]; computed in float32, or in float64 for float64."""
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    lanes = torch.arange(0, spec.dim, 2, dtype=precision, device=position_ids.device)
    frequencies = spec.base ** -(lanes / spec.dim)
    positions = position_ids.to(precision) / spec.interpolation
    angles = (positions[..., None] * frequencies)[:, :, None, :]
    return RotaryTable(angles.cos(), angles.sin(), spec.interleaved)


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
    """A rotation; its gradient is the rotation by the opposite angle."""

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

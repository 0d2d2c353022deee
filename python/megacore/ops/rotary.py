"""Rotary position embedding, alone or together with the split of a query/key/value projection.

The kernels are `csrc/kernels/rotary.*`. Arithmetic is float32 whatever the dtype of the heads, with
one rounding per lane. The gradient of a rotation is the rotation by the opposite angles.
Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, 3.2.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacore.ops import library


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Turn the first 2 * half lanes of every head; lanes behind them pass unchanged.

    Args:
        x: [B, S, N, D] float32, bfloat16 or float16; float64 takes the reference.
        cos: [B * S, half] or, the same for every sequence, [S, half]; float32 (float64 for
            float64).
        sin: Like `cos`.
        interleaved: Pair lanes (0, 1), (2, 3), ... instead of (0, half), (1, half + 1), ...

    Returns:
        [B, S, N, D] in the dtype of x.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    if x.dtype == torch.float64:
        return _reference_turn(x, cos, sin, interleaved, False)
    out: Tensor = torch.ops.megacore.rotary_turn(x.contiguous(), cos, sin, interleaved, False)
    return out


def rotary_split(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a projection into queries, keys and values, with queries and keys turned.

    Args:
        qkv: [B, S, G, R + 2, D] float32, bfloat16 or float16 (float64 takes the reference): for
            each of G groups its R query heads, its key head and its value head.
        cos: As in `rotary`.
        sin: As in `rotary`.
        interleaved: As in `rotary`.

    Returns:
        q [B, S, G, R, D], k [B, S, G, D] and v [B, S, G, D] in the dtype of qkv.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    if qkv.dtype == torch.float64:
        return _reference_split(qkv, cos, sin, interleaved)
    q, k, v = torch.ops.megacore.rotary_split(qkv.contiguous(), cos, sin, interleaved)
    return q, k, v


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """`rotary` in plain PyTorch, in the wider dtype of x and the angles."""
    return _reference_turn(x, cos, sin, interleaved, False)


def rotary_split_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`rotary_split` in plain PyTorch, in the wider dtype of qkv and the angles."""
    return _reference_split(qkv, cos, sin, interleaved)


def _reference_turn(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, opposite: bool
) -> Tensor:
    _check(x, cos, sin)
    half, lanes = cos.shape[1], 2 * cos.shape[1]
    # Angles of one sequence serve all of them.
    cos, sin = (a.view(-1, x.shape[1], 1, half) for a in (cos, -sin if opposite else sin))
    if interleaved:
        first, second = x[..., 0:lanes:2], x[..., 1:lanes:2]
    else:
        first, second = x[..., :half], x[..., half:lanes]
    # Products with the float32 angles are float32: one rounding per lane, at the end.
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin
    if interleaved:
        turned = torch.stack((turned_first, turned_second), dim=-1).flatten(-2)
    else:
        turned = torch.cat((turned_first, turned_second), dim=-1)
    return torch.cat((turned.to(x.dtype), x[..., lanes:]), dim=-1)


def _check(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    if x.dim() < 4:
        raise RuntimeError(f"expected [B, S, ..., D], found {list(x.shape)}")
    rows = (x.shape[1], x.shape[0] * x.shape[1])
    for name, angles in (("cos", cos), ("sin", sin)):
        fits = angles.dim() == 2 and angles.shape[0] in rows and angles.shape == cos.shape
        if not fits or 2 * angles.shape[1] > x.shape[-1]:
            raise RuntimeError(
                f"expected {rows[0]} or {rows[1]} rows for at most {x.shape[-1]} lanes, "
                f"found {name}: {list(angles.shape)}"
            )


def _reference_split(
    qkv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.split((qkv.shape[3] - 2, 1, 1), dim=3)
    turned_q = _reference_turn(q.flatten(2, 3), cos, sin, interleaved, False).view(q.shape)
    turned_k = _reference_turn(k.flatten(2, 3), cos, sin, interleaved, False)
    return turned_q, turned_k, v.flatten(2, 3).clone()


def _reference_join(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> Tensor:
    back_q = _reference_turn(q.flatten(2, 3), cos, sin, interleaved, True).view(q.shape)
    back_k = _reference_turn(k, cos, sin, interleaved, True)
    return torch.cat((back_q, back_k[:, :, :, None], v[:, :, :, None]), dim=3)


def _fake_turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, opposite: bool) -> Tensor:
    _check(x, cos, sin)
    return torch.empty_like(x)


def _fake_split(
    qkv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(qkv, cos, sin)
    b, s, g, heads, d = qkv.shape
    q = qkv.new_empty(b, s, g, heads - 2, d)
    return q, qkv.new_empty(b, s, g, d), qkv.new_empty(b, s, g, d)


def _fake_join(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> Tensor:
    b, s, g, ratio, d = q.shape
    return q.new_empty(b, s, g, ratio + 2, d)


def _setup_turn(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, interleaved, opposite = inputs
    ctx.save_for_backward(cos, sin)
    ctx.flags = (interleaved, opposite)


def _turn_backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None, None, None]:
    cos, sin = ctx.saved_tensors
    interleaved, opposite = ctx.flags
    dx = torch.ops.megacore.rotary_turn(dout.contiguous(), cos, sin, interleaved, not opposite)
    return dx, None, None, None, None


def _setup_split(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, cos, sin, interleaved = inputs
    ctx.save_for_backward(cos, sin)
    ctx.interleaved = interleaved


def _split_backward(
    ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, None, None, None]:
    cos, sin = ctx.saved_tensors
    grads = (dq.contiguous(), dk.contiguous(), dv.contiguous())
    dqkv = torch.ops.megacore.rotary_join(*grads, cos, sin, ctx.interleaved)
    return dqkv, None, None, None


library.define(
    "rotary_turn(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool opposite) -> Tensor",
    reference=_reference_turn,
    fake=_fake_turn,
)
library.define(
    "rotary_split(Tensor qkv, Tensor cos, Tensor sin, bool interleaved) "
    "-> (Tensor, Tensor, Tensor)",
    reference=_reference_split,
    fake=_fake_split,
)
library.define(
    "rotary_join(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, bool interleaved) -> Tensor",
    reference=_reference_join,
    fake=_fake_join,
)
library.register_autograd("rotary_turn", _turn_backward, setup_context=_setup_turn)
library.register_autograd("rotary_split", _split_backward, setup_context=_setup_split)

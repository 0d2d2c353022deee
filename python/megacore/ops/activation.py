"""Non-linearities of a feed-forward layer, together with its bias and its gate.

The kernels are `csrc/kernels/activation.*`. All arithmetic is float32 whatever the dtype; only the
input is kept for backward, which computes the non-linearity again.
Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Shazeer, "GLU Variants Improve
Transformer", 2020; So et al., "Primer", 2021 (squared ReLU).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops import library

# In the order of the kernels' numbers.
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "gelu_quick", "silu", "squared_relu")


def activation(x: Tensor, kind: str, *, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """f(x + bias), or f(first half) * second half of the columns of x + bias when gated.

    Args:
        x: [..., W] float32, bfloat16 or float16; float64 takes the reference.
        kind: One of `ACTIVATIONS`.
        bias: [W] dtype of x, or None.
        gated: Whether the columns are two halves: SwiGLU with "silu", GEGLU with "gelu_tanh".

    Returns:
        [..., W], or [..., W / 2] when gated, in the dtype of x.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
        ValueError: There is no such `kind`.
    """
    if x.dtype == torch.float64:
        return activation_reference(x, kind, bias=bias, gated=gated)
    out: Tensor = torch.ops.megacore.activation_forward(
        x.contiguous(), bias, _number_of(kind), gated
    )
    return out


def activation_reference(
    x: Tensor, kind: str, *, bias: Tensor | None = None, gated: bool = False
) -> Tensor:
    """`activation` in plain PyTorch, in float32 or the wider dtype of x."""
    return _reference_forward(x, bias, _number_of(kind), gated)


def _number_of(kind: str) -> int:
    if kind not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, found {kind!r}")
    return ACTIVATIONS.index(kind)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _apply(z: Tensor, number: int) -> Tensor:
    kind = ACTIVATIONS[number]
    if kind == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if kind == "gelu_erf":
        return F.gelu(z)
    if kind == "gelu_quick":
        return z * torch.sigmoid(1.702 * z)
    if kind == "silu":
        return F.silu(z)
    return F.relu(z).square()


def _reference_forward(x: Tensor, bias: Tensor | None, number: int, gated: bool) -> Tensor:
    _check_shapes(x, bias, gated)
    z = _wide(x) if bias is None else _wide(x) + _wide(bias)
    if gated:
        first, second = z.chunk(2, dim=-1)
        return (_apply(first, number) * second).to(x.dtype)
    return _apply(z, number).to(x.dtype)


def _check_shapes(x: Tensor, bias: Tensor | None, gated: bool) -> None:
    if x.dim() == 0:
        raise RuntimeError("x: expected at least one dimension, found a scalar")
    width = x.shape[-1]
    if gated and width % 2:
        raise RuntimeError(f"x: expected an even number of columns for a gate, found {width}")
    if bias is not None and tuple(bias.shape) != (width,):
        raise RuntimeError(f"expected shape [{width}], found bias: {list(bias.shape)}")


def _reference_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, number: int, gated: bool
) -> tuple[Tensor, Tensor]:
    """dx, dbias (no elements without a bias)."""
    with torch.enable_grad():
        z = (_wide(x) if bias is None else _wide(x) + _wide(bias)).detach().requires_grad_()
        out = _reference_forward(z, None, number, gated)
    (dz,) = torch.autograd.grad(out, z, _wide(dout))
    if bias is None:
        return dz.to(x.dtype), x.new_empty(0)
    return dz.to(x.dtype), dz.reshape(-1, dz.shape[-1]).sum(0).to(bias.dtype)


def _fake_forward(x: Tensor, bias: Tensor | None, number: int, gated: bool) -> Tensor:
    _check_shapes(x, bias, gated)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // (2 if gated else 1)))


def _fake_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, number: int, gated: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0 if bias is None else x.shape[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, number, gated = inputs
    ctx.save_for_backward(x, bias)
    ctx.flags = (number, gated)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.megacore.activation_backward(dout.contiguous(), x, bias, *ctx.flags)
    return dx, None if bias is None else dbias, None, None


library.define(
    "activation_forward(Tensor x, Tensor? bias, int activation, bool gated) -> Tensor",
    reference=_reference_forward,
    fake=_fake_forward,
)
library.define(
    "activation_backward(Tensor dout, Tensor x, Tensor? bias, int activation, bool gated) "
    "-> (Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
)
library.register_autograd("activation_forward", _backward, setup_context=_setup_context)

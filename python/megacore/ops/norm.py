"""Layer normalization and RMS normalization over the last dimension.

The kernels are `csrc/kernels/norm.*`. All arithmetic is float32 whatever the dtypes.
Source: Ba et al., "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer
Normalization", 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacore.ops import library


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, zero_centered: bool = False
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    Args:
        x: [..., H] float32, bfloat16 or float16.
        weight: [H] dtype of x, or float32; with a float32 x also bfloat16 or float16.
        bias: [H] dtype of weight, or None.
        eps: Added to the biased variance.
        zero_centered: `weight` holds the scale minus one.

    Returns:
        [..., H] in the dtype of x.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    out, _, _ = torch.ops.megacore.norm_forward(
        x.contiguous(), weight, bias, eps, zero_centered, True
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, zero_centered: bool = False) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        x: [..., H] float32, bfloat16 or float16.
        weight: [H] dtype of x, or float32; with a float32 x also bfloat16 or float16.
        eps: Added to the mean square.
        zero_centered: `weight` holds the scale minus one.

    Returns:
        [..., H] in the dtype of x.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    out, _, _ = torch.ops.megacore.norm_forward(
        x.contiguous(), weight, None, eps, zero_centered, False
    )
    return out


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, zero_centered: bool = False
) -> Tensor:
    """`layer_norm` in plain PyTorch, in float32 or the wider dtype of x."""
    return _reference_forward(x, weight, bias, eps, zero_centered, True)[0]


def rms_norm_reference(
    x: Tensor, weight: Tensor, *, eps: float, zero_centered: bool = False
) -> Tensor:
    """`rms_norm` in plain PyTorch, in float32 or the wider dtype of x."""
    return _reference_forward(x, weight, None, eps, zero_centered, False)[0]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _reference_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    zero_centered: bool,
    subtract_mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean [M] (no elements for RMSNorm) and rstd [M], the statistics in float32."""
    _check_shapes(x, weight, bias)
    wide = _wide(x)
    mean = wide.mean(-1, keepdim=True) if subtract_mean else None
    centered = wide if mean is None else wide - mean
    rstd = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    scale = _wide(weight) + 1 if zero_centered else _wide(weight)
    out = centered * rstd * scale
    if bias is not None:
        out = out + _wide(bias)
    flat_mean = rstd.new_empty(0) if mean is None else mean.reshape(-1).clone()
    return out.to(x.dtype), flat_mean, rstd.reshape(-1)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    hidden = x.shape[-1] if x.dim() else None
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != (hidden,):
            raise RuntimeError(
                f"expected shape [{hidden}], found {name}: {list(tensor.shape)} "
                f"for x: {list(x.shape)}"
            )


def _reference_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    zero_centered: bool,
    subtract_mean: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias (no elements without a bias)."""
    hidden = x.shape[-1]
    rows, drows = _wide(x).reshape(-1, hidden), _wide(dout).reshape(-1, hidden)
    centered = rows - mean[:, None] if subtract_mean else rows
    normalized = centered * rstd[:, None]
    gradient = drows * (_wide(weight) + 1 if zero_centered else _wide(weight))
    dx = gradient - normalized * (gradient * normalized).mean(-1, keepdim=True)
    if subtract_mean:
        dx = dx - gradient.mean(-1, keepdim=True)
    dx = (dx * rstd[:, None]).reshape(x.shape).to(x.dtype)
    dweight = (drows * normalized).sum(0).to(weight.dtype)
    dbias = drows.sum(0).to(weight.dtype) if has_bias else weight.new_empty(0)
    return dx, dweight, dbias


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    zero_centered: bool,
    subtract_mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = 0 if x.shape[-1] == 0 else x.numel() // x.shape[-1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    statistics = x.new_empty(rows, dtype=wide)
    mean = statistics if subtract_mean else x.new_empty(0, dtype=wide)
    return torch.empty_like(x), mean.clone(), statistics


def _fake_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    zero_centered: bool,
    subtract_mean: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(x.shape[-1] if has_bias else 0)
    return torch.empty_like(x), torch.empty_like(weight), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, zero_centered, subtract_mean = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.flags = (zero_centered, subtract_mean, bias is not None)


def _backward(
    ctx: Any, dout: Tensor | None, dmean: None, drstd: None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
    if dout is None:
        return None, None, None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.megacore.norm_backward(
        dout.contiguous(), x, weight, mean, rstd, *ctx.flags
    )
    has_bias = ctx.flags[2]
    return dx, dweight, dbias if has_bias else None, None, None, None


library.define(
    "norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps, bool zero_centered, "
    "bool subtract_mean) -> (Tensor, Tensor, Tensor)",
    reference=_reference_forward,
    fake=_fake_forward,
)
library.define(
    "norm_backward(Tensor dout, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
    "bool zero_centered, bool subtract_mean, bool has_bias) -> (Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
)
library.register_autograd("norm_forward", _backward, setup_context=_setup_context)

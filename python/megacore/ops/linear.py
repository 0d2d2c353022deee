"""The products of a linear layer, and its gradient of the weight added straight into a sum.

y = x W^T + b has three products: itself, dx = dy W and dW = dy^T x. Whoever keeps sums of gradients
(the optimizer, in float32) says so of a parameter (`add_gradients_to`); the third product is then
added to them without a gradient of its own, which would be written, rounded, read and added.
Autograd gets None for it, and still calls the parameter's hooks once, when all uses are done.

Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022);
Megatron-LM's gradient accumulation fusion.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops.gemm import is_native, matmul, matmul_add_

_ATTRIBUTE = "gradient_sum"


def add_gradients_to(param: torch.nn.Parameter, total: Tensor) -> None:
    """Makes products for the gradient of a parameter add to `total`, of its shape."""
    setattr(param, _ATTRIBUTE, total)


def sum_of(weight: Tensor) -> Tensor | None:
    """What products for the gradient of a weight add to, if anything."""
    found: Tensor | None = getattr(weight, _ATTRIBUTE, None)
    return found


def forward_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: [..., out] of `x` [..., in], `weight` [out, in] and `bias` [out] or None.

    No gradient is recorded for products of a library.
    """
    if _takes(x):
        rows = x.reshape(-1, x.shape[-1])
        return matmul(rows, weight.t(), bias=bias).view(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, bias)


def input_product(dy: Tensor, weight: Tensor) -> Tensor:
    """dy W, the gradient of x: [..., in] of `dy` [..., out] and `weight` [out, in]."""
    if _takes(dy):
        rows = _rows(dy)
        return matmul(rows, weight).view(*dy.shape[:-1], weight.shape[1])
    return dy.matmul(weight)


def weight_product(x: Tensor, dy: Tensor) -> Tensor:
    """dy^T x, the gradient of W: [out, in] of `x` [..., in] and `dy` [..., out]."""
    rows, outs = _rows(x), _rows(dy)
    return matmul(outs.t(), rows) if _takes(x) else outs.t() @ rows


def add_weight_product(total: Tensor, x: Tensor, dy: Tensor) -> None:
    """Adds dy^T x to `total` [out, in], for `x` [..., in] and `dy` [..., out]."""
    matmul_add_(total, _rows(dy).t(), _rows(x))


def weight_gradient(weight: Tensor, x: Tensor, dy: Tensor) -> Tensor | None:
    """The gradient of W for autograd, or None when it was added to the parameter's sum.

    Args:
        weight: The parameter [out, in].
        x: [..., in].
        dy: [..., out], the gradient of y.
    """
    total = sum_of(weight)
    if total is None:
        return weight_product(x, dy)
    add_weight_product(total, x, dy)
    return None


def bias_gradient(dy: Tensor) -> Tensor:
    """The gradient of b: [out] of `dy` [..., out]."""
    return dy.flatten(0, -2).sum(0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x W^T + b: [..., out] of `x` [..., in], `weight` [out, in], `bias` [out] or None."""
    return _Linear.apply(x, weight, bias)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` in plain PyTorch, in float32 or the wider dtype of x."""
    if x.dtype == torch.float64:
        return F.linear(x, weight, bias)
    wide_bias = None if bias is None else bias.float()
    return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)


def _takes(x: Tensor) -> bool:
    # In float32 PyTorch runs the same library.
    return x.dtype in (torch.bfloat16, torch.float16) and is_native(x.dtype, x.device.type)


def _rows(x: Tensor) -> Tensor:
    """[..., n] as [M, n], with a stride of 1 in one dimension."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if 1 in rows.stride() else rows.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        # Not saved: recompute would give back a copy, whose sum nobody looks at.
        ctx.weight = weight
        return forward_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weight, dy = ctx.saved_tensors, ctx.weight, grads[0]
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = input_product(dy, weight) if need_x else None
        dweight = None
        if need_weight:
            dweight = weight_gradient(weight, x, dy)
        return dx, dweight, bias_gradient(dy) if need_bias else None

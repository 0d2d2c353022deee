"""One AdamW step over flat buffers, with the low-precision copy written in the same pass.

The kernel is `csrc/kernels/adamw.*`.
Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megacore.ops import library


def adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    model_param: Tensor | None = None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """Update parameters and moments in place.

    Args:
        param: [N] float32, updated.
        grad: [N] float32.
        exp_avg: [N] float32 first moment, updated.
        exp_avg_sq: [N] float32 second moment, updated.
        model_param: [N] float32, bfloat16 or float16 copy of `param`, written; or None.
        lr: Learning rate.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        eps: Added to the root of the corrected second moment.
        weight_decay: Decoupled weight decay; `param` shrinks by lr * weight_decay.
        step: Number of this step, from 1.
        grad_scale: Factor of the gradient (clipping, inverse loss scale).

    Raises:
        RuntimeError: A tensor or scalar does not fit; the message names it.
    """
    torch.ops.megacore.adamw_step(
        param,
        exp_avg,
        exp_avg_sq,
        model_param,
        grad,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        step,
        grad_scale,
    )


def adamw_reference(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    model_param: Tensor | None = None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """`adamw_step` in plain PyTorch, for any floating-point dtype."""
    for name, tensor in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if tensor.shape != param.shape:
            raise RuntimeError(
                f"expected shape {list(param.shape)}, found {name}: {list(tensor.shape)}"
            )
    if step < 1:
        raise RuntimeError(f"step: counts from 1, found {step}")
    scaled = grad * grad_scale
    exp_avg.mul_(beta1).add_(scaled, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominator = (exp_avg_sq.sqrt() / math.sqrt(correction2)).add_(eps)
    param.mul_(1 - lr * weight_decay)
    param.addcdiv_(exp_avg, denominator, value=-lr / correction1)
    if model_param is not None:
        model_param.copy_(param)


def _reference_op(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    model_param: Tensor | None,
    grad: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None:
    adamw_reference(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        model_param=model_param,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        grad_scale=grad_scale,
    )


def _fake_op(*args: object) -> None:
    return None


library.define(
    "adamw_step(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!)? model_param, Tensor grad, float lr, float beta1, float beta2, float eps, "
    "float weight_decay, int step, float grad_scale) -> ()",
    reference=_reference_op,
    fake=_fake_op,
)

"""The AdamW update of a flat buffer in plain PyTorch."""

from __future__ import annotations

import math

from torch import Tensor


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
    """Updates [n] float32 buffers in place."""
    correction1 = 1.0 - beta1**step
    correction2 = math.sqrt(1.0 - beta2**step)
    scaled = grad * grad_scale
    param.mul_(1.0 - lr * weight_decay)
    exp_avg.lerp_(scaled, 1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(scaled, scaled, value=1.0 - beta2)
    denominator = exp_avg_sq.sqrt().div_(correction2).add_(eps)
    param.addcdiv_(exp_avg, denominator, value=-lr / correction1)
    if model_param is not None:
        model_param.copy_(param)

"""One step of stochastic gradient descent over flat buffers, with the low-precision copy.

The kernel is `csrc/kernels/sgd.*`.
Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013,
in the form of torch.optim.SGD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacore.ops import library


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    model_param: Tensor | None = None,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Update parameters and momentum in place.

    Args:
        param: [N] float32, updated.
        grad: [N] float32.
        momentum_buffer: [N] float32, updated; None without momentum.
        model_param: [N] float32, bfloat16 or float16 copy of `param`, written; or None.
        lr: Learning rate.
        momentum: Share of the buffer that stays, in [0, 1).
        weight_decay: Times the parameter added to the gradient.
        grad_scale: Factor of the gradient (clipping, inverse loss scale).

    Raises:
        RuntimeError: A tensor or scalar does not fit; the message names it.
    """
    torch.ops.megacore.sgd_step(
        param, momentum_buffer, model_param, grad, lr, momentum, weight_decay, grad_scale
    )


def sgd_reference(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    model_param: Tensor | None = None,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """`sgd_step` in plain PyTorch, for any floating-point dtype."""
    update = grad * grad_scale
    if weight_decay:
        update.add_(param, alpha=weight_decay)
    if momentum_buffer is not None:
        update = momentum_buffer.mul_(momentum).add_(update)
    param.add_(update, alpha=-lr)
    if model_param is not None:
        model_param.copy_(param)


def _reference_op(
    param: Tensor,
    momentum_buffer: Tensor | None,
    model_param: Tensor | None,
    grad: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    sgd_reference(
        param,
        grad,
        momentum_buffer,
        model_param=model_param,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        grad_scale=grad_scale,
    )


def _fake_op(*args: object) -> None:
    return None


library.define(
    "sgd_step(Tensor(a!) param, Tensor(b!)? momentum_buffer, Tensor(c!)? model_param, Tensor grad, "
    "float lr, float momentum, float weight_decay, float grad_scale) -> ()",
    reference=_reference_op,
    fake=_fake_op,
)

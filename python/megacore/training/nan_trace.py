"""Finds the first layer or parameter that holds a value that is not finite.

The micro-batch that went wrong is run again with the random state it had, with a hook on every
module. Slow, and only done once the run is lost anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def find_non_finite(model: nn.Module, run: Callable[[], Tensor]) -> str:
    """One sentence that names the first place with a NaN or infinity.

    Looked at in this order: parameters, forward outputs in the order of execution, the loss,
    gradients in the order of backward, gradients of parameters.

    Args:
        model: The model; its gradients are lost.
        run: Computes the loss of the micro-batch (a scalar tensor with a graph).
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"parameter {name} {_describe(parameter)} before the forward pass"
    found: list[str] = []
    handles = list(_forward_hooks(model, found))
    try:
        loss = run()
        if found:
            return found[0]
        if not _finite(loss):
            return f"the loss itself ({loss.item()}); the output of every layer is finite"
    finally:
        for handle in handles:
            handle.remove()
    return _find_in_backward(model, run)


def _find_in_backward(model: nn.Module, run: Callable[[], Tensor]) -> str:
    found: list[str] = []
    handles: list[Any] = list(_backward_hooks(model, found))
    try:
        for parameter in model.parameters():
            parameter.grad = None
        loss = run()
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and not _finite(gradient):
            return f"gradient of parameter {name} {_describe(gradient)}"
    return (
        "no layer: this micro-batch alone gives finite outputs and gradients; the overflow comes "
        "from adding micro-batches or from the optimizer"
    )


def _forward_hooks(model: nn.Module, found: list[str]) -> Iterator[Any]:
    def hook(name: str, kind: str) -> Callable[..., None]:
        def check(module: nn.Module, inputs: object, output: object) -> None:
            if found:
                return
            for tensor in _tensors(output):
                if not _finite(tensor):
                    found.append(f"output of {name} ({kind}) {_describe(tensor)}")
                    return

        return check

    for name, module in model.named_modules():
        yield module.register_forward_hook(hook(name or "the model", type(module).__name__))


def _backward_hooks(model: nn.Module, found: list[str]) -> Iterator[Any]:
    """Looks at the gradient of every module's output when backward reaches it."""

    def watch(name: str, kind: str) -> Callable[..., None]:
        def after_forward(module: nn.Module, inputs: object, output: object) -> None:
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(check(name, kind))

        return after_forward

    def check(name: str, kind: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not found and not _finite(gradient):
                found.append(f"gradient of the output of {name} ({kind}) {_describe(gradient)}")

        return look

    for name, module in model.named_modules():
        yield module.register_forward_hook(watch(name or "the model", type(module).__name__))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def _describe(tensor: Tensor) -> str:
    tensor = tensor.detach()
    nans = int(torch.isnan(tensor).sum())
    infinities = int(torch.isinf(tensor).sum())
    shape = list(tensor.shape)
    return f"has {nans} NaN and {infinities} infinite of {tensor.numel()} values, shape {shape}"

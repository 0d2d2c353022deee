"""Weight gradients that are computed later than the gradients of the inputs.

Zero-bubble schedules split the backward pass of a stage: I computes the gradient of the input,
which the previous stage waits for, and W, which nobody waits for, the gradients of the weights,
whenever the rank would be idle (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", section 2).
Only the products of linear layers are worth it: in I they leave what they need in a
`WeightGradStore`, and W takes it from there. All other parameters (norms, biases, embeddings) get
their gradients in I.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megacore.ops.linear import (
    add_weight_product,
    bias_gradient,
    forward_product,
    input_product,
    sum_of,
    weight_gradient,
    weight_product,
)

Ready = Callable[[torch.nn.Parameter], None]


@dataclass(frozen=True)
class LateProduct:
    """The gradient of the weight of y = x W^T, of operands that are asked for only then.

    Attributes:
        x: Gives [..., in].
        dy: Gives [..., out], the gradient of y.
    """

    x: Callable[[], Tensor]
    dy: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        """The gradient [out, in], a new tensor."""
        return weight_product(self.x(), self.dy())


class WeightGradStore:
    """Weight gradients that were left for later, by stage and microbatch.

    Attributes:
        on_ready: Called with a parameter when a deferred gradient was added to its sum, which
            autograd's hooks do not notice.
    """

    def __init__(self, on_ready: Ready | None = None) -> None:
        self.on_ready = on_ready
        self._key: tuple[int, int] | None = None
        self._left: dict[tuple[int, int], list[tuple[Tensor, Callable[[], Tensor]]]] = {}

    @property
    def is_deferring(self) -> bool:
        """Whether a backward pass should leave the gradients of its weights here."""
        return self._key is not None

    def __len__(self) -> int:
        """Number of (stage, microbatch) pairs with something left to do."""
        return len(self._left)

    @contextmanager
    def deferring(self, stage: int, microbatch: int) -> Iterator[None]:
        """Within it, weight gradients are left for `run` of the same stage and microbatch.

        Args:
            stage: Whose backward pass runs.
            microbatch: Whose backward pass runs.
        """
        self._key = (stage, microbatch)
        self._left[self._key] = []
        try:
            yield
        finally:
            self._key = None

    def defer(self, weight: Tensor, compute: Callable[[], Tensor]) -> None:
        """Leaves the gradient of a weight for later; only while deferring.

        Args:
            weight: The parameter.
            compute: Returns the gradient, a new tensor of the weight's shape.
        """
        assert self._key is not None
        self._left[self._key].append((weight, compute))

    def push(self, weight: Tensor, x: Tensor, dy: Tensor) -> None:
        """Leaves the gradient of the weight of y = x W^T for later; only while deferring.

        Args:
            weight: Parameter [out, in].
            x: [..., in].
            dy: [..., out], the gradient of y.
        """
        # Detached: what made `x` would stay alive with it.
        self.defer(weight, LateProduct(partial(_same, x.detach()), partial(_same, dy)))

    @torch.no_grad()
    def run(self, stage: int, microbatch: int) -> None:
        """Computes what was left, adds it to `main_grad` (or `grad`), and forgets the tensors.

        Args:
            stage: Whose weights.
            microbatch: For which input.
        """
        left = self._left.pop((stage, microbatch))
        # First come, first served; each entry is dropped once used, to free its tensors.
        left.reverse()
        while left:
            weight, compute = left.pop()
            accumulate(weight, compute)
            if self.on_ready is not None and isinstance(weight, torch.nn.Parameter):
                self.on_ready(weight)

    def clear(self) -> None:
        """Forgets everything, after a failure."""
        self._left.clear()


def accumulate(weight: Tensor, compute: Callable[[], Tensor]) -> None:
    """Adds a gradient to the sum of a parameter: its `main_grad` if it has one, else its `grad`.

    Args:
        weight: The parameter.
        compute: Returns the gradient, a new tensor; the product of a `LateProduct` is added without
            one where the parameter has a sum for that.
    """
    fused = sum_of(weight)
    if fused is not None and isinstance(compute, LateProduct):
        add_weight_product(fused, compute.x(), compute.dy())
        return
    total: Tensor | None = getattr(weight, "main_grad", None)
    if total is None:
        total = weight.grad
    if total is None:
        weight.grad = compute()
    else:
        total.add_(compute())


def _same(x: Tensor) -> Tensor:
    return x


class _DeferredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, store: WeightGradStore
    ) -> Tensor:
        ctx.save_for_backward(x)
        # Not saved: recompute would give back a copy, whose gradient nobody looks at.
        ctx.weight, ctx.store = weight, store
        return forward_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        dx = input_product(dy, weight) if ctx.needs_input_grad[0] else None
        dweight = dbias = None
        if ctx.needs_input_grad[2]:
            dbias = bias_gradient(dy)
        if ctx.needs_input_grad[1]:
            if ctx.store.is_deferring:
                ctx.store.push(weight, x, dy)
            else:
                dweight = weight_gradient(weight, x, dy)
        return dx, dweight, dbias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, store: WeightGradStore) -> Tensor:
    """y = x W^T + b, whose weight gradient can be left for later.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out] or None.
        store: Where the backward pass leaves it while it is deferring.

    Returns:
        [..., out].
    """
    return _DeferredLinear.apply(x, weight, bias, store)

"""Linear layers whose products take 8-bit operands.

`Fp8Product` takes the place of a layer's `product`. x, weight and the gradient of the result are
converted with scales; forward multiplies x with the weight, backward the gradient with weight and
x. What is kept for backward has one byte an element.

Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; the delayed scales are those of
NVIDIA's Transformer Engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megacore.layers.fp8_config import Fp8Config
from megacore.ops.fp8_quantize import (
    BLOCK,
    E4M3,
    E5M2,
    Operand,
    largest,
    product,
    quantize,
    quantize_blocks,
)

INPUT, WEIGHT, GRADIENT = range(3)
KINDS = 3


def gradient_dtype(config: Fp8Config) -> torch.dtype:
    """Format of gradients."""
    return E5M2 if config.fp8 == "hybrid" else E4M3


class DelayedScales:
    """Scales of many tensors, from the largest magnitudes of earlier iterations.

    Args:
        config: Says how scales follow from magnitudes.
        names: Layers, each of which has the `KINDS` tensors.
        device: Where the layers are.

    Attributes:
        names: As given.
        amax: [n * KINDS] float32, largest magnitudes of this iteration so far.
        scale: [n * KINDS] float32.
        history: [length, n * KINDS] float32, largest magnitudes of iterations, the last one first.
        num_updates: Iterations so far.
    """

    def __init__(self, config: Fp8Config, names: list[str], device: torch.device) -> None:
        self.names = names
        self._config = config
        count = len(names) * KINDS
        self.amax = torch.zeros(count, device=device)
        self.scale = torch.ones(count, device=device)
        self.history = torch.zeros(config.fp8_amax_history_len, count, device=device)
        self.num_updates = 0
        limits = [largest(E4M3), largest(E4M3), largest(gradient_dtype(config))]
        self._limits = torch.tensor(limits, device=device).repeat(len(names))

    @torch.no_grad()
    def update(self, reduce: Callable[[Tensor], None]) -> None:
        """An iteration is over: its magnitudes go into the history, and scales follow.

        Tensors that were zero or not finite keep their scale.

        Args:
            reduce: Puts the largest of all processes with these layers into a tensor.
        """
        reduce(self.amax)
        self.history = self.history.roll(1, 0)
        self.history[0] = self.amax
        self.amax.zero_()
        self.num_updates += 1
        if self.num_updates % self._config.fp8_interval:
            return
        is_max = self._config.fp8_amax_compute_algo == "max"
        amax = self.history.amax(0) if is_max else self.history[0]
        wanted = self._limits / amax / 2.0**self._config.fp8_margin
        good = (amax > 0) & amax.isfinite() & wanted.isfinite()
        self.scale.copy_(torch.where(good, wanted, self.scale))

    def state_values(self) -> dict[str, Any]:
        """Layer -> its scales and history, as JSON values."""
        scale = self.scale.view(-1, KINDS).tolist()
        history = self.history.view(len(self.history), -1, KINDS).permute(1, 0, 2).tolist()
        return {
            name: {"scale": scale[i], "history": history[i], "updates": self.num_updates}
            for i, name in enumerate(self.names)
        }

    def load_state(self, values: dict[str, Any]) -> list[str]:
        """Goes on from `state_values`; a history of another length is cut or filled with zeros.

        Returns:
            Layers that have no usable state in `values`, and keep what they have.
        """
        missing = []
        for i, name in enumerate(self.names):
            here = slice(i * KINDS, (i + 1) * KINDS)
            try:
                stored = values[name]
                scale = torch.tensor(stored["scale"], dtype=torch.float32)
                history = torch.tensor(stored["history"], dtype=torch.float32)
                updates = int(stored["updates"])
                history = history.view(-1, KINDS)[: len(self.history)]
                self.scale[here] = scale.view(KINDS).to(self.scale.device)
            except (KeyError, TypeError, ValueError, RuntimeError):
                missing.append(name)
                continue
            self.history[: len(history), here] = history.to(self.history.device)
            self.num_updates = updates
        return missing


class _Both(NamedTuple):
    """A matrix [M, K] as operand of sums along K and, transposed, along M."""

    rows: Operand
    columns: Operand


class Fp8Product:
    """x W^T + b with 8-bit operands.

    Args:
        config: Formats and recipe.
        scales: Delayed scales, of which this layer has the `index`-th; None for other recipes.
        index: See `scales`.
    """

    def __init__(self, config: Fp8Config, scales: DelayedScales | None, index: int) -> None:
        self.config = config
        self._scales = scales
        self._first = index * KINDS

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] times weight [N, K], plus bias [N] or None."""
        # Evaluation changes no scale.
        y = _Fp8Linear.apply(x, weight, self, torch.is_grad_enabled())
        assert isinstance(y, Tensor)
        return y if bias is None else y + bias

    def converted(self, x: Tensor, kind: int, *, record: bool, transpose: bool) -> _Both:
        """Both operands of x [M, K]; the transposed one is empty unless asked for."""
        dtype = gradient_dtype(self.config) if kind == GRADIENT else E4M3
        if self.config.fp8_recipe == "blockwise":
            return _in_blocks(x, kind, dtype, transpose=transpose)
        if self._scales is not None:
            here = slice(self._first + kind, self._first + kind + 1)
            scale, amax = self._scales.scale[here], self._scales.amax[here]
            amax = amax if record else torch.zeros_like(amax)
        else:
            scale, amax = _own_scale(x, dtype), x.new_zeros(1, dtype=torch.float32)
        # cuBLASLt wants both operands with the sum along their rows; others take a view.
        copies = transpose and x.device.type == "cuda"
        codes, transposed = quantize(x, scale, amax, dtype, transpose=copies)
        # Not a view: the scale of the next iteration is written over this one.
        inverse = scale.reciprocal()
        return _Both(Operand(codes, inverse), Operand(transposed if copies else codes.t(), inverse))


def _own_scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale [1] that brings the largest magnitude of x to that of the format."""
    amax = x.detach().abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)
    scale = largest(dtype) / amax
    usable = (amax > 0) & scale.isfinite()
    return torch.where(usable, scale, torch.ones_like(scale)).view(1)


def _in_blocks(x: Tensor, kind: int, dtype: torch.dtype, *, transpose: bool) -> _Both:
    """Blocks of 128 along the sum; weights in squares, which serve both sums."""
    if kind == WEIGHT:
        whole = quantize_blocks(x, BLOCK, dtype)
        turned = Operand(whole.codes.t(), whole.inverse.t(), BLOCK, BLOCK)
        return _Both(whole, turned)
    rows = quantize_blocks(x, 1, dtype)
    return _Both(rows, quantize_blocks(x.t(), 1, dtype) if transpose else rows)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Fp8Product, record: bool) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        flat = x.reshape(-1, x.shape[-1])
        keeps_codes = needs_weight and layer.config.fp8_wgrad
        inputs = layer.converted(flat, INPUT, record=record, transpose=keeps_codes)
        weights = layer.converted(weight, WEIGHT, record=record, transpose=needs_x)
        y = product(inputs.rows, weights.rows, x.dtype)
        ctx.layer, ctx.record, ctx.x_shape, ctx.dtype = layer, record, x.shape, x.dtype
        kept_x = inputs.columns if keeps_codes else None
        kept_weight = weights.columns if needs_x else None
        # Codes alone are large; blocks and scales travel beside them.
        ctx.x_blocks = None if kept_x is None else kept_x[2:]
        ctx.weight_blocks = None if kept_weight is None else kept_weight[2:]
        ctx.save_for_backward(
            *(kept_x[:2] if kept_x is not None else (flat if needs_weight else None, None)),
            *(kept_weight[:2] if kept_weight is not None else (None, None)),
        )
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, x_inverse, weight, weight_inverse = ctx.saved_tensors
        layer: Fp8Product = ctx.layer
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        gradients = layer.converted(
            dy, GRADIENT, record=ctx.record, transpose=ctx.x_blocks is not None
        )
        dx = dweight = None
        if ctx.weight_blocks is not None:
            operand = Operand(weight, weight_inverse, *ctx.weight_blocks)
            dx = product(gradients.rows, operand, ctx.dtype).view(ctx.x_shape)
        if ctx.x_blocks is not None:
            operand = Operand(x, x_inverse, *ctx.x_blocks)
            dweight = product(gradients.columns, operand, ctx.dtype)
        elif ctx.needs_input_grad[1]:
            dweight = dy.t() @ x
        return dx, dweight, None, None

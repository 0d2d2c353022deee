"""8-bit products in a finished model: put into its linear layers from outside.

With tensor parallelism a layer communicates around its product in the dtype of the model, and
waits; scales are those of each process's own part of a tensor until the largest magnitudes of all
processes with the layer are put together, once an iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megacore.errors import UsageError
from megacore.layers.fp8 import DelayedScales, Fp8Product
from megacore.layers.fp8_config import Fp8Config
from megacore.layers.linear import Linear, Product
from megacore.models.staged import StagedModel
from megacore.parallel.collectives import reduce, reduce_scatter, shared
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.linear import ColumnProduct, RowProduct, SplitProduct
from megacore.parallel.pieces import SEQUENCE

# Both dimensions of an operand of cuBLASLt's 8-bit products are multiples of this.
_MULTIPLE = 16


class Fp8Scaling:
    """The scales of this process's layers, kept the same on all processes that have them.

    Args:
        scales: Delayed scales; None where tensors have scales of their own.
        groups: The groups of this process.
    """

    def __init__(self, scales: DelayedScales | None, groups: ParallelGroups) -> None:
        self._scales = scales
        self._groups = groups

    def update(self) -> None:
        """An iteration is over; all processes call it."""
        if self._scales is not None:
            self._scales.update(self._reduce)

    def _reduce(self, amax: Tensor) -> None:
        for group in (self._groups.tp, self._groups.dp_cp):
            if group.size > 1:
                group.all_reduce(amax, "max")

    def state_values(self) -> dict[str, Any]:
        """Layer -> scales and history, as JSON values; of the layers on this process."""
        return {} if self._scales is None else self._scales.state_values()

    def load_state(self, values: Mapping[str, Any]) -> list[str]:
        """Goes on from the `state_values` of all processes; notes for the log."""
        if self._scales is None:
            return []
        missing = self._scales.load_state(dict(values))
        if not missing:
            return []
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return [f"no FP8 scales of {missing[0]}{more} in the checkpoint: they start at 1"]


def apply_fp8(
    stages: Mapping[int, StagedModel],
    config: Fp8Config,
    groups: ParallelGroups,
    device: torch.device,
) -> Fp8Scaling:
    """Let the linear layers of attention and MLP multiply 8-bit operands, in place.

    To be called when the layers have their parts of the weights.

    Args:
        stages: This process's parts of the model.
        config: Formats and recipe; switched on.
        groups: The groups of this process.
        device: Where the model is.

    Raises:
        UsageError: The device or a layer cannot do it; all faults at once.
    """
    layers = {name: layer for stage in stages.values() for name, layer in _linear_layers(stage)}
    faults = list(_faults(layers, device))
    if faults:
        raise UsageError("--fp8-format: " + "\n".join(faults))
    delayed = config.fp8_recipe == "delayed"
    scales = DelayedScales(config, list(layers), device) if delayed else None
    for index, layer in enumerate(layers.values()):
        layer.product = _around(layer.product, Fp8Product(config, scales, index))
    return Fp8Scaling(scales, groups)


def _linear_layers(stage: StagedModel) -> Iterator[tuple[str, Linear]]:
    for block_name, block in stage.blocks.items():
        for name, module in block.named_modules():
            if isinstance(module, Linear):
                yield f"{block_name}.{name}", module


def _faults(layers: Mapping[str, Linear], device: torch.device) -> Iterator[str]:
    for name, layer in layers.items():
        if isinstance(layer.product, SplitProduct) and layer.product.store is not None:
            yield f"{name}: a schedule that defers weight gradients has no 8-bit products"
        elif device.type == "cuda" and any(size % _MULTIPLE for size in layer.weight.shape):
            yield f"{name}: sizes {list(layer.weight.shape)} are no multiples of {_MULTIPLE}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        yield f"{torch.cuda.get_device_name(device)} has no 8-bit products (compute capability 8.9)"


def _around(before: Product, inner: Fp8Product) -> Product:
    """The 8-bit product with the communication of the one before it."""
    if isinstance(before, ColumnProduct):
        return _Fp8Column(before, inner)
    if isinstance(before, RowProduct):
        return _Fp8Row(before, inner)
    return inner


class _Fp8Column:
    """`ColumnProduct` around an 8-bit product."""

    def __init__(self, before: ColumnProduct, inner: Fp8Product) -> None:
        self._group, self._sequence, self._inner = before.group, before.sequence, inner

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, S, I], or [B, S / size, I] with a split sequence, to [B, S, O / size]."""
        return self._inner(shared(x, self._group, sequence=self._sequence), weight, bias)


class _Fp8Row:
    """`RowProduct` around an 8-bit product."""

    def __init__(self, before: RowProduct, inner: Fp8Product) -> None:
        self._group, self._sequence, self._inner = before.group, before.sequence, inner

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, S, I / size] to [B, S, O], or [B, S / size, O] with a split sequence."""
        part = self._inner(x, weight, None)
        if self._sequence:
            total = reduce_scatter(part, self._group, SEQUENCE)
        else:
            total = reduce(part, self._group)
        return total if bias is None else total + bias

"""Puts low-rank adapters into a finished model."""

from __future__ import annotations

from torch import nn

from megacore.layers.linear import Linear
from megacore.layers.lora import LowRankAdapter
from megacore.models.lora import LoraConfig


def add_adapters(model: nn.Module, lora: LoraConfig) -> None:
    """Freezes a model, and gives its linear layers adapters that are trained.

    Args:
        model: Whole model, on any device; changed in place. The new parameters are not initialised
            (see `models.initialization`); they have the dtype of the layer's weight.
        lora: Settings; `lora_rank` is given.
    """
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, Linear) or name.rpartition(".")[2] not in lora.targets:
            continue
        out_size, in_size = layer.weight.shape
        layer.adapter = LowRankAdapter(
            in_size,
            out_size,
            rank=lora.lora_rank or 1,
            scale=lora.scale,
            dropout=lora.lora_dropout,
            dtype=layer.weight.dtype,
            device=layer.weight.device,
        )

"""Running a model whose weights are never in memory together: one layer at a time is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megacore.checkpoint.convert.model_stream import ModelDescription
from megacore.layers.transformer import TransformerBlock
from megacore.models.select import MODELS


@torch.no_grad()
def streamed_logits(
    description: ModelDescription,
    read: Callable[[str], Tensor],
    tokens: Tensor,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Logits of a model of which the embedding, one layer or the output layer is in memory.

    Those of the masked-token head of a BERT; of a T5 whose encoder and decoder both get the tokens.

    Args:
        description: The model.
        read: Canonical name -> full tensor, of any dtype.
        tokens: [B, S] int64.
        dtype: float32 or float64, for weights and arithmetic.

    Returns:
        [B, S, V] of `dtype`, padding rows of the vocabulary included.
    """
    family = description.config.model_family
    model = MODELS[family](
        description.config,
        padded_vocab_size=description.padded_vocab_size,
        dtype=dtype,
        device="meta",
    ).eval()
    embedding, output = model.embedding, model.output_layer
    assert embedding is not None  # the model is whole
    assert output is not None
    stay = [embedding] if output.tied else []
    parts: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, TransformerBlock):
            parts += [*child.layers.values(), *filter(None, [child.final_layernorm])]
        else:
            parts.append(child)
    prefixes = {module: name for name, module in model.named_modules()}
    for part in parts:
        part.register_forward_pre_hook(_filler(prefixes[part], read, dtype))
        if part not in stay:
            part.register_forward_hook(_release)
    logits: Tensor
    if family == "bert":
        logits = model(tokens).tokens
    elif family == "t5":
        logits = model(tokens, tokens)
    else:
        logits = model(tokens)
    return logits


def _filler(
    prefix: str, read: Callable[[str], Tensor], dtype: torch.dtype
) -> Callable[[nn.Module, Any], None]:
    def fill(part: nn.Module, _arguments: Any) -> None:
        for name, module in part.named_modules(prefix=prefix):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    value = read(f"{name}.{key}").to(dtype)
                    setattr(module, key, nn.Parameter(value, requires_grad=False))

    return fill


def _release(part: nn.Module, _arguments: Any, _output: Any) -> None:
    for module in part.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(parameter.to("meta"), requires_grad=False))

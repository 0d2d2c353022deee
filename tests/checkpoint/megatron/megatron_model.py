"""A small GPT, how Megatron-LM cuts it, and what it calls the tensors; for files of tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A small GPT and how it is cut."""

    layers: int = 4
    hidden: int = 12
    heads: int = 4
    groups: int = 4
    channels: int = 3
    ffn: int = 20
    vocab: int = 32
    positions: int = 8
    gated: bool = False
    bias: bool = True
    rms: bool = False
    tied: bool = True
    rope: bool = False
    tp: int = 1
    pp: int = 1
    virtual: int = 1
    counts: tuple[int, ...] = ()

    def stage_layers(self) -> list[list[range]]:
        """[pipeline rank][virtual stage] -> layers."""
        stages = self.pp * self.virtual
        counts = self.counts or (self.layers // stages,) * stages
        first, ranges = 0, []
        for count in counts:
            ranges.append(range(first, first + count))
            first += count
        assert first == self.layers
        return [[ranges[c * self.pp + p] for c in range(self.virtual)] for p in range(self.pp)]


def full_model(shape: Shape, *, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Canonical name -> random tensor of the whole model."""
    chance = torch.Generator().manual_seed(seed)
    h, d = shape.hidden, shape.channels
    rows = (shape.heads + 2 * shape.groups) * d
    sizes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (shape.vocab, h)}
    if not shape.rope:
        sizes["embedding.position_embeddings.weight"] = (shape.positions, h)
    kinds = ("weight",) if shape.rms else ("weight", "bias")
    for i in range(shape.layers):
        p = f"decoder.layers.{i}."
        sizes |= {f"{p}self_attention.linear_qkv.layer_norm_{k}": (h,) for k in kinds}
        sizes[f"{p}self_attention.linear_qkv.weight"] = (rows, h)
        sizes[f"{p}self_attention.linear_proj.weight"] = (h, shape.heads * d)
        sizes |= {f"{p}mlp.linear_fc1.layer_norm_{k}": (h,) for k in kinds}
        sizes[f"{p}mlp.linear_fc1.weight"] = (shape.ffn * (2 if shape.gated else 1), h)
        sizes[f"{p}mlp.linear_fc2.weight"] = (h, shape.ffn)
        if shape.bias:
            sizes[f"{p}self_attention.linear_qkv.bias"] = (rows,)
            sizes[f"{p}self_attention.linear_proj.bias"] = (h,)
            sizes[f"{p}mlp.linear_fc1.bias"] = (shape.ffn * (2 if shape.gated else 1),)
            sizes[f"{p}mlp.linear_fc2.bias"] = (h,)
    sizes |= {f"decoder.final_layernorm.{k}": (h,) for k in kinds}
    if not shape.tied:
        sizes["output_layer.weight"] = (shape.vocab, h)
    return {n: torch.randn(s, generator=chance).to(dtype) for n, s in sizes.items()}


def cut(name: str, full: Tensor, shape: Shape, rank: int) -> Tensor:
    """The part of a tensor that a tensor-parallel rank has."""

    def block(tensor: Tensor, dim: int) -> Tensor:
        return tensor.chunk(shape.tp, dim)[rank]

    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        return block(full, 0)
    if name.endswith(("linear_qkv.weight", "linear_qkv.bias")):
        return block(full, 0)
    if name.endswith(("linear_fc1.weight", "linear_fc1.bias")):
        if not shape.gated:
            return block(full, 0)
        gate, up = full.chunk(2, 0)
        return torch.cat([block(gate, 0), block(up, 0)])
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return block(full, 1)
    return full


# Parameters of a layer in the order of Megatron's modules, for layers of Transformer Engine.
ORDER = (
    "self_attention.linear_proj.weight",
    "self_attention.linear_proj.bias",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.layer_norm_bias",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.layer_norm_bias",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc1.bias",
    "mlp.linear_fc2.weight",
    "mlp.linear_fc2.bias",
)
LOCAL = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
LEGACY = {
    "self_attention.linear_qkv.layer_norm_": "input_norm.",
    "mlp.linear_fc1.layer_norm_": "post_attention_norm.",
    "self_attention.linear_qkv.": "self_attention.query_key_value.",
    "self_attention.linear_proj.": "self_attention.dense.",
    "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
    "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
}
OLD_LEGACY = {
    "input_norm.": "input_layernorm.",
    "post_attention_norm.": "post_attention_layernorm.",
    "self_attention.": "attention.",
}


def replaced(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if text.startswith(old):
            return new + text.removeprefix(old)
    return text

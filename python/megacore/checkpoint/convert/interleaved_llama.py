"""Llama weights as Meta stores them and as GGUF keeps them.

Both rotate neighbouring channels of a head, (0, 1), (2, 3), ..., where the canonical form rotates
the first half with the second; so the rows of every query and key head are reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.convert.model_stream import TensorInfo
from megacore.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LlamaNames:
    """How a format calls the tensors; {} stands for the number of the layer."""

    embedding: str
    final_norm: str
    output: str
    attention_norm: str
    query: str
    key: str
    value: str
    projection: str
    mlp_norm: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class _Recipe:
    """A canonical tensor: the source tensors it is made of, put together by `build`."""

    origins: tuple[str, ...]
    build: Callable[..., Tensor]


class InterleavedLlama:
    """Canonical tensors of a Llama in a format with interleaved rotation.

    Args:
        names: What the format calls its tensors.
        found: Names of the tensors that there are.
        config: The architecture, resolved.
        info: Shape and dtype of a source tensor, as `read` will give it.
        read: Reads a source tensor.
    """

    def __init__(
        self,
        names: LlamaNames,
        found: Collection[str],
        config: ModelConfig,
        *,
        info: Callable[[str], TensorInfo],
        read: Callable[[str], Tensor],
    ) -> None:
        self._info = info
        self._read = read
        self._recipes: dict[str, _Recipe] = {}
        self._found = found
        heads, groups = config.num_attention_heads, config.num_query_groups
        assert config.num_layers is not None  # the configuration is resolved
        assert heads is not None

        def qkv(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return fuse_interleaved(query, key, value, heads=heads, groups=groups)

        self._add("embedding.word_embeddings.weight", _same, names.embedding)
        for layer in range(config.num_layers):
            here = f"decoder.layers.{layer}"
            attention, mlp = f"{here}.self_attention", f"{here}.mlp"
            parts = [part.format(layer) for part in (names.query, names.key, names.value)]
            biases = [part.removesuffix(".weight") + ".bias" for part in parts]
            halves = [names.gate.format(layer), names.up.format(layer)]
            norm, mlp_norm = names.attention_norm.format(layer), names.mlp_norm.format(layer)
            self._add(f"{attention}.linear_qkv.layer_norm_weight", _same, norm)
            self._add(f"{attention}.linear_qkv.weight", qkv, *parts)
            self._add(f"{attention}.linear_qkv.bias", qkv, *biases)
            self._add(f"{attention}.linear_proj.weight", _same, names.projection.format(layer))
            self._add(f"{mlp}.linear_fc1.layer_norm_weight", _same, mlp_norm)
            self._add(f"{mlp}.linear_fc1.weight", _stacked, *halves)
            self._add(f"{mlp}.linear_fc2.weight", _same, names.down.format(layer))
        self._add("decoder.final_layernorm.weight", _same, names.final_norm)
        if config.untie_embeddings_and_output_weights:
            self._add("output_layer.weight", _same, names.output)

    def _add(self, name: str, build: Callable[..., Tensor], *origins: str) -> None:
        if all(origin in self._found for origin in origins):
            self._recipes[name] = _Recipe(origins, build)

    def names(self) -> list[str]:
        """Canonical names for which every source tensor is there."""
        return list(self._recipes)

    def origins(self, name: str) -> tuple[str, ...]:
        """Source tensors of a canonical one."""
        return self._recipes[name].origins

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor."""
        parts = [self._info(origin) for origin in self._recipes[name].origins]
        rows = sum(part.shape[0] if part.shape else 0 for part in parts)
        dtype = parts[0].dtype
        for part in parts[1:]:
            dtype = torch.promote_types(dtype, part.dtype)
        return TensorInfo((rows, *parts[0].shape[1:]), dtype)

    def read(self, name: str) -> Tensor:
        """A canonical tensor."""
        recipe = self._recipes[name]
        return recipe.build(*map(self._read, recipe.origins))

    def used(self) -> set[str]:
        """Every source tensor that some canonical one is made of."""
        return {origin for recipe in self._recipes.values() for origin in recipe.origins}


def fuse_interleaved(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, groups: int
) -> Tensor:
    """One projection, grouped by key/value head, with halves instead of neighbours rotated.

    Args:
        query: [heads * D, ...].
        key: [groups * D, ...].
        value: [groups * D, ...].
        heads: Query heads.
        groups: Key/value heads; divides `heads`.

    Returns:
        [(heads + 2 groups) * D, ...].
    """
    width, rest = value.shape[0] // groups, value.shape[1:]
    fused = value.new_empty(groups, heads // groups + 2, width, *rest)
    # Row 2 i + j of a head becomes row j * D / 2 + i.
    halves = fused.unflatten(2, (2, width // 2)).transpose(2, 3)
    halves[:, :-2].copy_(query.reshape(groups, heads // groups, width // 2, 2, *rest))
    halves[:, -2].copy_(key.reshape(groups, width // 2, 2, *rest))
    fused[:, -1].copy_(value.reshape(groups, width, *rest))
    return fused.reshape(-1, *rest)


def llama_config(**values: Any) -> ModelConfig:
    """The configuration of a Llama, resolved.

    Args:
        **values: Fields of `ModelConfig`: sizes, epsilon, base, what is not as in every Llama.

    Raises:
        ConfigError: The sizes do not fit together.
    """
    common: dict[str, Any] = {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "swiglu": True,
        "add_bias_linear": False,
        "group_query_attention": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "make_vocab_size_divisible_by": 1,
    }
    return ModelConfig(**{**common, **values}).resolved()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _stacked(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)

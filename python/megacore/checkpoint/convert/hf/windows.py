"""Sliding windows of a `config.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megacore.checkpoint.convert.hf.parts import Fields
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig
from megacore.models.window import parse_window, window_layers, window_pattern

_SLIDING, _FULL = "sliding_attention", "full_attention"


def window_fields(tokens: int, layers: Sequence[bool]) -> Fields:
    """Fields of a window of so many tokens in these layers."""
    if not any(layers):
        return {}
    return {
        "window_size": f"{tokens - 1},0",
        "window_attn_skip_freq": window_pattern(tuple(layers)),
    }


def layers_of(config: ModelConfig) -> tuple[bool, ...]:
    """For each layer whether it has a window."""
    count = config.num_layers or 0
    if config.window_size is None:
        return (False,) * count
    return window_layers(config.window_attn_skip_freq, count)


def tokens_of(config: ModelConfig) -> int | None:
    """Tokens of the window, or None."""
    return None if config.window_size is None else parse_window(config.window_size)


@dataclass(frozen=True, kw_only=True)
class UniformWindow:
    """`sliding_window` is that of all layers, or null."""

    default: int | None

    def read(self, values: Values) -> Fields:
        """Fields of the window."""
        tokens = self.default
        if "sliding_window" in values:
            tokens = values.integer("sliding_window", None)
        return {} if tokens is None else window_fields(tokens, [True])

    def write(self, config: ModelConfig) -> Fields:
        """The window; one of some layers only is not expressed, which reading back finds."""
        return {"sliding_window": tokens_of(config) if all(layers_of(config)) else None}


@dataclass(frozen=True, kw_only=True)
class LayerWindow:
    """`sliding_window` is that of the layers that `layer_types` names.

    Attributes:
        depth_name: Their name of the number of layers.
        tokens: Default of the window.
        every: Without `layer_types`: every so many layers one has no window.
        optional: The window counts only with `use_sliding_window`, and without `layer_types` from
            layer `max_window_layers` on (Qwen).
        pattern_name: Older name of `every` in the file, or None.
    """

    tokens: int
    depth_name: str = "num_hidden_layers"
    every: int = 1
    optional: bool = False
    pattern_name: str | None = None

    def read(self, values: Values) -> Fields:
        """Fields of the window."""
        depth = values.take(self.depth_name)
        depth = depth if isinstance(depth, int) else 0
        tokens = self.tokens
        if "sliding_window" in values:
            tokens = values.integer("sliding_window", None)
        used = not self.optional or values.switch("use_sliding_window", False)
        first = values.take("max_window_layers", 28) if self.optional else 0
        every = values.integer(self.pattern_name, self.every) if self.pattern_name else self.every
        types = values.take("layer_types", None)
        if types is None:
            layers = self._default_layers(depth, first, every, used and tokens is not None)
        else:
            layers = self._named_layers(values, types, depth)
        if any(layers) and (not used or tokens is None):
            values.fault("layer_types names layers with a window, but there is none")
            return {}
        return window_fields(tokens or 1, layers)

    def _default_layers(self, depth: int, first: Any, every: int, used: bool) -> list[bool]:
        if not used:
            return [False] * depth
        if self.optional:
            return [layer >= first for layer in range(depth)]
        return [(layer + 1) % every != 0 for layer in range(depth)]

    def _named_layers(self, values: Values, types: Any, depth: int) -> list[bool]:
        if not isinstance(types, list) or len(types) != depth:
            values.fault(f"layer_types must be a list of {depth} entries")
            return []
        unknown = [kind for kind in types if kind not in (_SLIDING, _FULL)]
        if unknown:
            values.fault(f"layer_types: layers of type {unknown[0]!r} cannot be converted")
        return [kind == _SLIDING for kind in types]

    def write(self, config: ModelConfig) -> Fields:
        """The window and the type of every layer, which is written in the older forms too."""
        layers, tokens = layers_of(config), tokens_of(config)
        result: Fields = {
            "sliding_window": tokens if any(layers) or not self.optional else None,
            "layer_types": [_SLIDING if has else _FULL for has in layers],
        }
        if self.optional:
            result["use_sliding_window"] = any(layers)
            result["max_window_layers"] = layers.index(True) if any(layers) else len(layers)
        pattern = config.window_attn_skip_freq
        if self.pattern_name is not None and pattern is not None and pattern.isdigit():
            result[self.pattern_name] = int(pattern)
        return result

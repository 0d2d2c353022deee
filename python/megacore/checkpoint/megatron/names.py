"""Names of parameters: here, in a core model of Megatron-LM, and in a legacy model.

Here and in core models built of Transformer Engine layers a norm in front of a projection belongs
to the projection; in core models of local layers and in legacy models it is a layer of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

WORD_EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_WEIGHT = "output_layer.weight"

_LAYER = re.compile(r"(?P<head>decoder\.layers\.)(?P<layer>\d+)\.(?P<rest>.+)")

# Layer of its own -> the name here.
_SEPARATE_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_FUSED_NORMS = {fused: separate for separate, fused in _SEPARATE_NORMS.items()}

# Part of a legacy layer -> part of a core layer. Older releases called norms layernorm, and
# self_attention attention.
_LEGACY_LAYER = {
    "input_norm.": "self_attention.linear_qkv.layer_norm_",
    "self_attention.query_key_value.": "self_attention.linear_qkv.",
    "self_attention.dense.": "self_attention.linear_proj.",
    "post_attention_norm.": "mlp.linear_fc1.layer_norm_",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
}
_LEGACY_OLD = {
    "input_layernorm.": "input_norm.",
    "post_attention_layernorm.": "post_attention_norm.",
    "attention.": "self_attention.",
}
_TO_LEGACY = {core: legacy for legacy, core in _LEGACY_LAYER.items()}
_LEGACY_ENCODER = re.compile(r"(?:encoder|transformer)\.(?P<rest>.+)")
_LEGACY_EMBEDDING = re.compile(r"(?:embedding\.)?(?P<rest>(?:word|position)_embeddings\.weight)")
_LEGACY_FINAL = re.compile(r"final_(?:norm|layernorm)\.(?P<kind>.+)")

# Tensors that hold no knowledge: state of FP8 recipes, constants that are computed from settings.
_IGNORED = re.compile(r"(?:.*\.)?(?:_extra_state|inv_freq|core_attention\..*_extra_state)")

# Order of parameters in the modules of Megatron-LM, which numbers the state of its optimizers.
_ORDER = (
    "input_layernorm",
    "self_attention.linear_proj",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.layer_norm_bias",
    "self_attention.linear_qkv",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "pre_mlp_layernorm",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.layer_norm_bias",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_TOP_ORDER = ("embedding.word_", "embedding.position_", "decoder.layers.", "decoder.final", "")


def is_ignored(name: str) -> bool:
    """Whether a tensor of a Megatron model holds nothing that a model needs."""
    return _IGNORED.fullmatch(name) is not None


def flattened(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_legacy(state: Mapping[str, Any]) -> bool:
    """Whether the state of a model is that of a legacy one."""
    return "language_model" in state or any(key.startswith("language_model.") for key in state)


def layer_of(name: str) -> int | None:
    """Number of the layer that a canonical or core name belongs to."""
    match = _LAYER.fullmatch(name)
    return int(match["layer"]) if match else None


def renumbered(name: str, by: int) -> str:
    """The name with its layer moved by so many."""
    match = _LAYER.fullmatch(name)
    return f"{match['head']}{int(match['layer']) + by}.{match['rest']}" if match else name


def _in_layer(name: str, table: Mapping[str, str]) -> str:
    """Replaces what a part of a layer is called."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    for old, new in table.items():
        if match["rest"].startswith(old):
            rest = new + match["rest"].removeprefix(old)
            return f"{match['head']}{match['layer']}.{rest}"
    return name


def from_core(name: str) -> str:
    """The canonical name of a tensor of a core model, of either kind of layers."""
    return _in_layer(name, _SEPARATE_NORMS)


def to_core(name: str, *, fused_norms: bool) -> str:
    """The name in a core model of a tensor with a canonical name.

    Args:
        name: Canonical name.
        fused_norms: The layers are those of Transformer Engine, not local ones.
    """
    return name if fused_norms else _in_layer(name, _FUSED_NORMS)


def from_legacy(name: str) -> str | None:
    """The canonical name of a tensor of a legacy model, None for one that GPT does not have.

    The copy of the word embedding that a last stage has is its output weight, as in core models.

    Args:
        name: Keys of the nested state, joined by dots.
    """
    if name == "word_embeddings_for_head.weight":
        return OUTPUT_WEIGHT
    rest = name.removeprefix("language_model.")
    if rest == name:
        return None
    if rest == OUTPUT_WEIGHT:
        return OUTPUT_WEIGHT
    embedding = _LEGACY_EMBEDDING.fullmatch(rest)
    if embedding:
        return f"embedding.{embedding['rest']}"
    encoder = _LEGACY_ENCODER.fullmatch(rest)
    if encoder is None:
        return None
    final = _LEGACY_FINAL.fullmatch(encoder["rest"])
    if final:
        return f"decoder.final_layernorm.{final['kind']}"
    current = _in_layer(f"decoder.{encoder['rest']}", _LEGACY_OLD)
    canonical = _in_layer(current, _LEGACY_LAYER)
    return None if canonical == current else canonical


def to_legacy(name: str) -> str | None:
    """The name in a legacy model of a tensor with a canonical name, None if there is none."""
    if name in (WORD_EMBEDDING, "embedding.position_embeddings.weight", OUTPUT_WEIGHT):
        return f"language_model.{name}"
    if name.startswith("decoder.final_layernorm."):
        return f"language_model.encoder.final_norm.{name.rpartition('.')[2]}"
    # The longest match: linear_qkv.layer_norm_weight also begins with linear_qkv.
    table = dict(sorted(_TO_LEGACY.items(), key=lambda item: -len(item[0])))
    renamed = _in_layer(name, table)
    return None if renamed == name else f"language_model.encoder.{renamed.partition('.')[2]}"


def nested_legacy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The nested state of a legacy model.

    Args:
        tensors: Legacy name, as `to_legacy` gives -> tensor.
    """
    state: dict[str, Any] = {"language_model": {}}
    for name, tensor in tensors.items():
        _, part, rest = name.split(".", 2)
        inside = state["language_model"].setdefault(part, {})
        if part == "embedding":
            table, kind = rest.split(".")
            inside.setdefault(table, {})[kind] = tensor
        else:
            inside[rest] = tensor
    return state


def in_megatron_order(names: Iterable[str]) -> list[str]:
    """Canonical or core names in the order in which Megatron-LM's modules have the parameters."""
    return sorted(names, key=_order)


def stage_order(name: str) -> int:
    """Place in a stage of what a canonical name belongs to: embeddings, layers, norm, output."""
    return next(i for i, head in enumerate(_TOP_ORDER) if name.startswith(head))


def _order(name: str) -> tuple[int, int, int, int, str]:
    top = stage_order(name)
    match = _LAYER.fullmatch(name)
    if match is None:
        return top, 0, 0, _kind_order(name), name
    rest = match["rest"]
    place = len(_ORDER)
    if rest in _ORDER:
        place = _ORDER.index(rest)
    elif rest.rpartition(".")[0] in _ORDER:
        place = _ORDER.index(rest.rpartition(".")[0])
    return top, int(match["layer"]), place, _kind_order(rest), rest


def _kind_order(name: str) -> int:
    return 1 if name.endswith("bias") else 0

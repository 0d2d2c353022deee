"""Weights (or gradients) of small Hugging Face models under megacore's names, for comparisons.

Every mapping only permutes and concatenates, so it carries gradients as well as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megacore.layers.spec import TransformerSpec

Mapper = Callable[[Mapping[str, Tensor], TransformerSpec], dict[str, Tensor]]


def fuse_qkv(q: Tensor, k: Tensor, v: Tensor, spec: TransformerSpec) -> Tensor:
    """Rows of separate projections, grouped by key/value head.

    Args:
        q: [N * D, ...].
        k: [G * D, ...].
        v: [G * D, ...].
        spec: Numbers of heads and groups.

    Returns:
        [(N + 2 G) * D, ...].
    """
    groups, width, rest = spec.num_groups, spec.head_dim, q.shape[1:]
    per_group = spec.num_heads // groups
    parts = [
        q.reshape(groups, per_group * width, *rest),
        k.reshape(groups, width, *rest),
        v.reshape(groups, width, *rest),
    ]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def from_gpt2(source: Mapping[str, Tensor], spec: TransformerSpec) -> dict[str, Tensor]:
    """GPT-2, whose linear weights are stored [in, out]."""
    result = {
        "embedding.word_embeddings.weight": source["transformer.wte.weight"],
        "embedding.position_embeddings.weight": source["transformer.wpe.weight"],
        "decoder.final_layernorm.weight": source["transformer.ln_f.weight"],
        "decoder.final_layernorm.bias": source["transformer.ln_f.bias"],
    }
    for layer in range(spec.num_layers):
        here, there = f"decoder.layers.{layer}", f"transformer.h.{layer}"
        qkv, proj = f"{here}.self_attention.linear_qkv", f"{here}.self_attention.linear_proj"
        for kind in ("weight", "bias"):
            q, k, v = source[f"{there}.attn.c_attn.{kind}"].t().chunk(3)
            result[f"{qkv}.{kind}"] = fuse_qkv(q, k, v, spec)
            result[f"{proj}.{kind}"] = source[f"{there}.attn.c_proj.{kind}"].t()
            result[f"{here}.mlp.linear_fc1.{kind}"] = source[f"{there}.mlp.c_fc.{kind}"].t()
            result[f"{here}.mlp.linear_fc2.{kind}"] = source[f"{there}.mlp.c_proj.{kind}"].t()
            result[f"{qkv}.layer_norm_{kind}"] = source[f"{there}.ln_1.{kind}"]
            result[f"{here}.mlp.linear_fc1.layer_norm_{kind}"] = source[f"{there}.ln_2.{kind}"]
    return _with_output(result, source, "lm_head.weight")


def from_llama(source: Mapping[str, Tensor], spec: TransformerSpec) -> dict[str, Tensor]:
    """Llama and its many relatives with the same module names."""
    result = {"embedding.word_embeddings.weight": source["model.embed_tokens.weight"]}
    _copy(result, "decoder.final_layernorm.", source, "model.norm.")
    for layer in range(spec.num_layers):
        here, there = f"decoder.layers.{layer}", f"model.layers.{layer}"
        attention, mlp = f"{here}.self_attention", f"{here}.mlp"
        for kind in ("weight", "bias"):
            names = [f"{there}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            if names[0] in source:
                q, k, v = (source[name] for name in names)
                result[f"{attention}.linear_qkv.{kind}"] = fuse_qkv(q, k, v, spec)
            up = source.get(f"{there}.mlp.up_proj.{kind}")
            gate = source.get(f"{there}.mlp.gate_proj.{kind}")
            if up is not None:
                whole = up if gate is None else torch.cat([gate, up])
                result[f"{mlp}.linear_fc1.{kind}"] = whole
        _copy(result, f"{attention}.linear_proj.", source, f"{there}.self_attn.o_proj.")
        _copy(result, f"{mlp}.linear_fc2.", source, f"{there}.mlp.down_proj.")
        _copy(result, f"{attention}.linear_qkv.layer_norm_", source, f"{there}.input_layernorm.")
        _copy(result, f"{mlp}.linear_fc1.layer_norm_", source, f"{there}.post_attention_layernorm.")
        for part in "qk":
            _copy(
                result, f"{attention}.{part}_layernorm.", source, f"{there}.self_attn.{part}_norm."
            )
    return _with_output(result, source, "lm_head.weight")


def from_gpt_neox(source: Mapping[str, Tensor], spec: TransformerSpec) -> dict[str, Tensor]:
    """GPT-NeoX without parallel residual; its fused projection is grouped by head already."""
    result = {"embedding.word_embeddings.weight": source["gpt_neox.embed_in.weight"]}
    _copy(result, "decoder.final_layernorm.", source, "gpt_neox.final_layer_norm.")
    for layer in range(spec.num_layers):
        here, there = f"decoder.layers.{layer}", f"gpt_neox.layers.{layer}"
        attention, mlp = f"{here}.self_attention", f"{here}.mlp"
        pairs = {
            f"{attention}.linear_qkv.": "attention.query_key_value.",
            f"{attention}.linear_qkv.layer_norm_": "input_layernorm.",
            f"{attention}.linear_proj.": "attention.dense.",
            f"{mlp}.linear_fc1.": "mlp.dense_h_to_4h.",
            f"{mlp}.linear_fc1.layer_norm_": "post_attention_layernorm.",
            f"{mlp}.linear_fc2.": "mlp.dense_4h_to_h.",
        }
        for prefix, source_prefix in pairs.items():
            _copy(result, prefix, source, f"{there}.{source_prefix}")
    return _with_output(result, source, "lm_head.weight")


def _copy(
    result: dict[str, Tensor], prefix: str, source: Mapping[str, Tensor], source_prefix: str
) -> None:
    for kind in ("weight", "bias"):
        if source_prefix + kind in source:
            result[prefix + kind] = source[source_prefix + kind]


def _with_output(
    result: dict[str, Tensor], source: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    # Tied models list one parameter, so its absence is how they are recognised.
    if name in source:
        result["output_layer.weight"] = source[name]
    return {key: value.contiguous() for key, value in result.items()}

"""Gemma 3, text only: norms of queries and keys, other rotary positions in layers with a window.

Source: `Gemma3TextConfig` and `modeling_gemma3` of transformers 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.gemma_parts import GEMMA_FIXED, GEMMA_ONLY, Scores
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import (
    Activation,
    Dropout,
    Fields,
    Fixed,
    Norms,
    Sizes,
    Tied,
)
from megacore.checkpoint.convert.hf.rope import Rope, scaling_values, whole_base
from megacore.checkpoint.convert.hf.values import Values
from megacore.checkpoint.convert.hf.windows import LayerWindow
from megacore.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class _Positions:
    """Global and local rotary positions; scaling is that of the global ones."""

    def read(self, values: Values) -> Fields:
        nested = values.take("rope_parameters", None)
        whole, local = (_entry(nested, kind) for kind in ("full_attention", "sliding_attention"))
        old = values.take("rope_scaling", None)
        whole |= dict(old) if isinstance(old, Mapping) else {}
        theta = whole.pop("rope_theta", None) or values.take("rope_theta", 1_000_000)
        local_theta = local.pop("rope_theta", None) or values.take("rope_local_base_freq", 10_000)
        values.take("rope_theta", None)
        values.take("rope_local_base_freq", None)
        kind = local.pop("rope_type", None) or "default"
        if kind != "default" or local:
            values.fault("rope_parameters of sliding_attention can only have a rope_theta")
        fields: Fields = {
            "position_embedding_type": "rope",
            "rotary_base": whole_base(values, theta),
            "rotary_base_local": whole_base(values, local_theta),
        }
        return fields | Rope().scaling_fields(values, whole, None)

    def write(self, config: ModelConfig) -> Fields:
        local = config.rotary_base_local or config.rotary_base
        return {
            "rope_theta": float(config.rotary_base),
            "rope_local_base_freq": float(local),
            "rope_scaling": scaling_values(config),
        }


def _entry(nested: object, kind: str) -> Fields:
    found = nested.get(kind) if isinstance(nested, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


FAMILY = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=4, head_dim=256),
        Norms(name="rms_norm_eps", epsilon=1e-6, zero_centered=True),
        Activation(name="hidden_activation", default="gelu_pytorch_tanh", gated=True),
        LayerWindow(tokens=4096, every=6, pattern_name="sliding_window_pattern"),
        _Positions(),
        Scores(attention_cap=None, final_cap=None),
        Fixed(fields=GEMMA_FIXED | {"sandwich_norm": True, "qk_layernorm": True}, only=GEMMA_ONLY),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=True),
    ),
    table=llama_table(
        mlp_norm="pre_feedforward_layernorm",
        after=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
)

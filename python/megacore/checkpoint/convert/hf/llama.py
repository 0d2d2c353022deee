"""Llama 1, 2, 3, 3.1 and 3.2, and every model that calls itself one.

Source: `LlamaConfig` and `modeling_llama` of transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fields, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class _Biases:
    """Biases in all linear layers, or in none."""

    def read(self, values: Values) -> Fields:
        attention = values.switch("attention_bias", False)
        if attention != values.switch("mlp_bias", False):
            values.fault("attention_bias and mlp_bias must be the same")
        return {"add_bias_linear": attention}

    def write(self, config: ModelConfig) -> Fields:
        return {"attention_bias": config.add_bias_linear, "mlp_bias": config.add_bias_linear}


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES),
        Norms(name="rms_norm_eps", epsilon=1e-6),
        Activation(name="hidden_act", default="silu", gated=True),
        Rope(),
        _Biases(),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=False),
    ),
    table=llama_table(),
    # Left by tools in Vicuna and SmolLM.
    harmless=frozenset({"is_llama_config", "max_sequence_length"}),
)

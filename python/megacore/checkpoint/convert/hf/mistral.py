"""Mistral: Llama with a window over the nearest tokens in every layer, or in none.

Source: `MistralConfig` and `modeling_mistral` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.windows import UniformWindow

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=8),
        Norms(name="rms_norm_eps", epsilon=1e-6),
        Activation(name="hidden_act", default="silu", gated=True),
        Rope(),
        UniformWindow(default=4096),
        Fixed(fields={"add_bias_linear": False}, only={}),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=False),
    ),
    table=llama_table(),
)

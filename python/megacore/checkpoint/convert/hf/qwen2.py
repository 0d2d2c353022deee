"""Qwen 2 and 2.5: Llama with biases of queries, keys and values, and windows in upper layers.

Source: `Qwen2Config` and `modeling_qwen2` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.windows import LayerWindow

FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=32),
        Norms(name="rms_norm_eps", epsilon=1e-6),
        Activation(name="hidden_act", default="silu", gated=True),
        Rope(),
        LayerWindow(tokens=4096, optional=True),
        Fixed(fields={"add_bias_linear": False, "add_qkv_bias": True}, only={}),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=False),
    ),
    table=llama_table(),
)

"""Qwen 3: norms of queries and keys instead of the biases of Qwen 2.

Source: `Qwen3Config` and `modeling_qwen3` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.windows import LayerWindow

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=32, head_dim=128),
        Norms(name="rms_norm_eps", epsilon=1e-6),
        Activation(name="hidden_act", default="silu", gated=True),
        Rope(),
        LayerWindow(tokens=4096, optional=True),
        Fixed(
            fields={"add_bias_linear": False, "qk_layernorm": True}, only={"attention_bias": False}
        ),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=False),
    ),
    table=llama_table(),
)

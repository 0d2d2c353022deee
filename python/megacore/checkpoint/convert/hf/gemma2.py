"""Gemma 2: windows in every other layer, capped scores and logits, norms behind the branches.

Source: `Gemma2Config` and `modeling_gemma2` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.gemma_parts import GEMMA_FIXED, GEMMA_ONLY, Scores
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.windows import LayerWindow

FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=4, head_dim=256),
        Norms(name="rms_norm_eps", epsilon=1e-6, zero_centered=True),
        Activation(name="hidden_activation", default="gelu_pytorch_tanh", gated=True),
        Rope(),
        LayerWindow(tokens=4096, every=2),
        Scores(attention_cap=50.0, final_cap=30.0),
        Fixed(fields=GEMMA_FIXED | {"sandwich_norm": True}, only=GEMMA_ONLY),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=True),
    ),
    table=llama_table(
        mlp_norm="pre_feedforward_layernorm",
        after=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    # The older name of hidden_activation, which is the one that counts.
    harmless=frozenset({"hidden_act"}),
)

"""Phi-3, Phi-3.5 and Phi-4 (dense, text): Llama with fused projections and LongRoPE.

Source: `Phi3Config` and `modeling_phi3` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.windows import UniformWindow

_SIZES = {field: name for field, name in LLAMA_SIZES.items() if field != "kv_channels"}

FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    parts=(
        Sizes(names=_SIZES),
        Norms(name="rms_norm_eps", epsilon=1e-5),
        Activation(name="hidden_act", default="silu", gated=True),
        # The first releases called LongRoPE "su" and, by mistake, "yarn".
        Rope(
            percent_name="partial_rotary_factor",
            aliases=(("su", "longrope"), ("yarn", "longrope")),
            top_length=True,
        ),
        UniformWindow(default=None),
        Fixed(
            fields={"add_bias_linear": False},
            # The last two are in Phi-4-mini, whose code at home knows more kinds of layers.
            only={
                "attention_bias": False,
                "mlp_bias": False,
                "lm_head_bias": False,
                "interpolate_factor": 1,
                "full_attn_mod": 1,
            },
        ),
        Dropout(attention=("attention_dropout", 0.0), hidden=("resid_pdrop", "embd_pdrop")),
        Tied(default=False),
    ),
    table=llama_table(fused=True),
)

"""GPT-2.

Source: `GPT2Config` and `modeling_gpt2` of transformers 4 and 5.
"""

from __future__ import annotations

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.parts import Activation, Dropout, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rules import Row, row, rows

_OURS, _THEIRS = "decoder.layers.{i}.", "transformer.h.{i}."


def _table() -> list[Row]:
    qkv, fc1 = f"{_OURS}self_attention.linear_qkv.", f"{_OURS}mlp.linear_fc1."
    return [
        row("embedding.word_embeddings.weight", "transformer.wte.weight"),
        row("embedding.position_embeddings.weight", "transformer.wpe.weight"),
        *rows(f"{qkv}layer_norm_", f"{_THEIRS}ln_1."),
        *rows(qkv, f"{_THEIRS}attn.c_attn.", kind="stacked_qkv", transposed=True),
        *rows(f"{_OURS}self_attention.linear_proj.", f"{_THEIRS}attn.c_proj.", transposed=True),
        *rows(f"{fc1}layer_norm_", f"{_THEIRS}ln_2."),
        *rows(fc1, f"{_THEIRS}mlp.c_fc.", transposed=True),
        *rows(f"{_OURS}mlp.linear_fc2.", f"{_THEIRS}mlp.c_proj.", transposed=True),
        *rows("decoder.final_layernorm.", "transformer.ln_f."),
        row("output_layer.weight", "lm_head.weight"),
    ]


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    parts=(
        Sizes(
            names={
                "num_layers": "n_layer",
                "hidden_size": "n_embd",
                "ffn_hidden_size": "n_inner",
                "num_attention_heads": "n_head",
                "max_position_embeddings": "n_positions",
            },
            inner=4,
        ),
        Norms(name="layer_norm_epsilon", epsilon=1e-5, kind="LayerNorm"),
        Activation(name="activation_function", default="gelu_new", gated=False, tanh="gelu_new"),
        Fixed(
            fields={"position_embedding_type": "learned_absolute"},
            only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        ),
        Dropout(
            attention=("attn_pdrop", 0.1), hidden=("resid_pdrop", "embd_pdrop"), hidden_default=0.1
        ),
        Tied(default=True),
    ),
    table=_table(),
    prefix="transformer.",
    computed=("*.attn.bias", "*.attn.masked_bias"),
    harmless=frozenset(
        (
            "n_ctx",
            "output_past",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        )
    ),
)

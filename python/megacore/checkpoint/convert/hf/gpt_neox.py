"""GPT-NeoX and Pythia.

Source: `GPTNeoXConfig` and `modeling_gpt_neox` of transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.parts import (
    Activation,
    Dropout,
    Fields,
    Fixed,
    Norms,
    Sizes,
    Tied,
)
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.rules import Row, row, rows
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

_OURS, _THEIRS = "decoder.layers.{i}.", "gpt_neox.layers.{i}."


def _table() -> list[Row]:
    qkv, fc1 = f"{_OURS}self_attention.linear_qkv.", f"{_OURS}mlp.linear_fc1."
    return [
        row("embedding.word_embeddings.weight", "gpt_neox.embed_in.weight"),
        *rows(f"{qkv}layer_norm_", f"{_THEIRS}input_layernorm."),
        # Grouped by head already, which with as many groups as heads is the canonical order.
        *rows(qkv, f"{_THEIRS}attention.query_key_value."),
        *rows(f"{_OURS}self_attention.linear_proj.", f"{_THEIRS}attention.dense."),
        *rows(f"{fc1}layer_norm_", f"{_THEIRS}post_attention_layernorm."),
        *rows(fc1, f"{_THEIRS}mlp.dense_h_to_4h."),
        *rows(f"{_OURS}mlp.linear_fc2.", f"{_THEIRS}mlp.dense_4h_to_h."),
        *rows("decoder.final_layernorm.", "gpt_neox.final_layer_norm."),
        row("output_layer.weight", "embed_out.weight"),
    ]


@dataclass(frozen=True, kw_only=True)
class _Residual:
    """Whether attention and MLP both read the input of the layer."""

    def read(self, values: Values) -> Fields:
        return {"parallel_residual": values.switch("use_parallel_residual", True)}

    def write(self, config: ModelConfig) -> Fields:
        return {"use_parallel_residual": config.parallel_residual}


FAMILY = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    parts=(
        Sizes(
            names={
                "num_layers": "num_hidden_layers",
                "hidden_size": "hidden_size",
                "ffn_hidden_size": "intermediate_size",
                "num_attention_heads": "num_attention_heads",
                "max_position_embeddings": "max_position_embeddings",
            }
        ),
        Norms(name="layer_norm_eps", epsilon=1e-5, kind="LayerNorm"),
        Activation(name="hidden_act", default="gelu", gated=False, tanh="gelu_new"),
        Rope(theta_name="rotary_emb_base", percent=0.25, percent_name="rotary_pct"),
        _Residual(),
        Fixed(fields={"add_bias_linear": True}, only={"attention_bias": True}),
        Dropout(attention=("attention_dropout", 0.0), hidden=("hidden_dropout",)),
        Tied(default=False),
    ),
    table=_table(),
    prefix="gpt_neox.",
    computed=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    harmless=frozenset({"classifier_dropout", "is_decoder"}),
)

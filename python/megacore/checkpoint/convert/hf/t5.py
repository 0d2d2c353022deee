"""T5, 1.0 (ReLU, tied) and 1.1 (gated GELU, untied).

Source: `T5Config` and `modeling_t5` of transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.parts import Fields, Fixed, Norms
from megacore.checkpoint.convert.hf.rules import Row, row
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

_BIAS = "relative_pos_emb.relative_attention_bias.weight"


def _stack(name: str) -> list[Row]:
    ours, theirs = f"{name}.layers.{{i}}.", f"{name}.block.{{i}}.layer."
    last = 2 if name == "decoder" else 1
    qkv, fc1 = f"{ours}self_attention.linear_qkv.", f"{ours}mlp.linear_fc1."
    dense = f"{theirs}{last}.DenseReluDense."
    return [
        row(
            f"{name}_{_BIAS}",
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        row(f"{qkv}layer_norm_weight", f"{theirs}0.layer_norm.weight"),
        row(f"{qkv}weight", *(f"{theirs}0.SelfAttention.{x}.weight" for x in "qkv"), kind="qkv"),
        row(f"{ours}self_attention.linear_proj.weight", f"{theirs}0.SelfAttention.o.weight"),
        row(f"{fc1}layer_norm_weight", f"{theirs}{last}.layer_norm.weight"),
        row(f"{fc1}weight", f"{dense}wi.weight"),
        row(f"{ours}mlp.linear_fc2.weight", f"{dense}wo.weight"),
        row(f"{name}.final_layernorm.weight", f"{name}.final_layer_norm.weight"),
    ]


def _table(*, gated: bool) -> list[Row]:
    ours, theirs = "decoder.layers.{i}.", "decoder.block.{i}.layer.1."
    attention = f"{theirs}EncDecAttention."
    table = [
        row("embedding.word_embeddings.weight", "shared.weight"),
        *_stack("encoder"),
        *_stack("decoder"),
        row(f"{ours}pre_cross_attn_layernorm.weight", f"{theirs}layer_norm.weight"),
        row(f"{ours}cross_attention.linear_q.weight", f"{attention}q.weight"),
        row(
            f"{ours}cross_attention.linear_kv.weight",
            f"{attention}k.weight",
            f"{attention}v.weight",
            kind="kv",
        ),
        row(f"{ours}cross_attention.linear_proj.weight", f"{attention}o.weight"),
        row("lm_head.output_layer.weight", "lm_head.weight"),
    ]
    if not gated:
        return table
    return [
        row(
            entry.ours,
            *(entry.theirs[0].replace(".wi.", f".{half}.") for half in ("wi_0", "wi_1")),
            kind="halves",
        )
        if ".wi." in entry.theirs[0]
        else entry
        for entry in table
    ]


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Depths, widths and heads."""

    def read(self, values: Values) -> Fields:
        """Sizes."""
        found: Fields = {
            ours: values.integer(theirs)
            for ours, theirs in _NAMES.items()
            if ours != "decoder_num_layers"
        }
        depth = found["num_layers"]
        return found | {"decoder_num_layers": values.integer("num_decoder_layers", depth)}

    def write(self, config: ModelConfig) -> Fields:
        """Sizes, all of them."""
        return {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()}


_NAMES = {
    "num_layers": "num_layers",
    "decoder_num_layers": "num_decoder_layers",
    "hidden_size": "d_model",
    "kv_channels": "d_kv",
    "ffn_hidden_size": "d_ff",
    "num_attention_heads": "num_heads",
}


@dataclass(frozen=True, kw_only=True)
class _FeedForward:
    """The non-linearity, with or without a gate."""

    def read(self, values: Values) -> Fields:
        """Flags of the activation."""
        kind = values.take("feed_forward_proj", "relu")
        # Derived from the first by transformers, which writes them too.
        values.take("dense_act_fn", None)
        values.take("is_gated_act", None)
        if kind == "relu":
            return {"relu": True}
        if kind == "gated-gelu":
            # By that name transformers means the tanh form.
            return {"geglu": True, "openai_gelu": True}
        values.fault(f"feed_forward_proj = {kind!r}: only 'relu' and 'gated-gelu' can be converted")
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """Its name: reading back finds what it cannot say."""
        return {"feed_forward_proj": "gated-gelu" if config.geglu else "relu"}


@dataclass(frozen=True, kw_only=True)
class _Output:
    """The output layer: where it is tied, hidden states are scaled before it."""

    def read(self, values: Values) -> Fields:
        """Flags of the output layer."""
        tied = values.switch("tie_word_embeddings", True)
        # transformers 5 writes that weights are tied whether they are or not, and this instead.
        tied = values.switch("scale_decoder_outputs", tied)
        return {"untie_embeddings_and_output_weights": not tied, "scale_tied_output": tied}

    def write(self, config: ModelConfig) -> Fields:
        """The flag."""
        return {"tie_word_embeddings": not config.untie_embeddings_and_output_weights}


@dataclass(frozen=True, kw_only=True)
class _Relative:
    """Buckets of relative positions."""

    def read(self, values: Values) -> Fields:
        """Their number, and the largest distance."""
        return {
            "relative_attention_num_buckets": values.integer("relative_attention_num_buckets", 32),
            "relative_attention_max_distance": values.integer(
                "relative_attention_max_distance", 128
            ),
        }

    def write(self, config: ModelConfig) -> Fields:
        """The same."""
        return {
            "relative_attention_num_buckets": config.relative_attention_num_buckets,
            "relative_attention_max_distance": config.relative_attention_max_distance,
        }


@dataclass(frozen=True, kw_only=True)
class _Dropout:
    """One probability for everything."""

    def read(self, values: Values) -> Fields:
        """Probabilities."""
        drop = values.number("dropout_rate", 0.1)
        return {"attention_dropout": drop, "hidden_dropout": drop}

    def write(self, config: ModelConfig) -> Fields:
        """The probability."""
        return {"dropout_rate": config.hidden_dropout}


FAMILY = Family(
    name="t5",
    architecture="T5ForConditionalGeneration",
    other_architectures=("T5WithLMHeadModel",),
    parts=(
        _Sizes(),
        Norms(name="layer_norm_epsilon", epsilon=1e-6),
        _FeedForward(),
        _Relative(),
        _Dropout(),
        _Output(),
        Fixed(
            fields={
                "model_family": "t5",
                "position_embedding_type": "relative",
                "add_bias_linear": False,
                "lm_head_bias": False,
                "softmax_scale": 1.0,
            },
            only={"is_decoder": False},
        ),
    ),
    table=_table(gated=False),
    gated_table=_table(gated=True),
    is_encoder_decoder=True,
    prefix="",
    computed=(
        "*coder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    harmless=frozenset(("n_positions", "initializer_factor", "classifier_dropout")),
)

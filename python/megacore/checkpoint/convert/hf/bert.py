"""BERT and Megatron-BERT.

The layers of BERT normalise behind attention and MLP (post-norm). That is the same function as
layers that normalise in front and begin the residual branch behind the norm
(`--apply-residual-connection-post-layernorm`): each norm of BERT moves to the front of what
follows it, the one of the embedding to the first layer, the last one to the end of the stack.
Megatron-BERT has the layers of Megatron-LM as they are.

Source: `BertConfig`, `modeling_bert`, `MegatronBertConfig` and `modeling_megatron_bert` of
transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.parts import Dropout, Fields, Fixed, Norms, Sizes, Tied
from megacore.checkpoint.convert.hf.rules import Row, row, rows
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

_OURS, _THEIRS = "encoder.layers.{i}.", "bert.encoder.layer.{i}."
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")


def _shared() -> list[Row]:
    """What both have under the same names."""
    attention = f"{_THEIRS}attention."
    return [
        row("embedding.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        row("embedding.position_embeddings.weight", "bert.embeddings.position_embeddings.weight"),
        row(
            "embedding.tokentype_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"
        ),
        *rows(
            f"{_OURS}self_attention.linear_qkv.",
            *(f"{attention}self.{part}." for part in ("query", "key", "value")),
            kind="qkv",
        ),
        *rows(f"{_OURS}self_attention.linear_proj.", f"{attention}output.dense."),
        *rows(f"{_OURS}mlp.linear_fc1.", f"{_THEIRS}intermediate.dense."),
        *rows(f"{_OURS}mlp.linear_fc2.", f"{_THEIRS}output.dense."),
        *rows("lm_head.dense.", "cls.predictions.transform.dense."),
        *rows("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm."),
        row("output_layer.weight", "cls.predictions.decoder.weight"),
        row("output_layer.bias", "cls.predictions.bias"),
        *rows("pooler.dense.", "bert.pooler.dense."),
        *rows("binary_head.", "cls.seq_relationship."),
    ]


def _post_norms() -> list[Row]:
    qkv, fc1 = "self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"
    return [
        *rows(f"{_OURS}{qkv}", "bert.encoder.layer.{i-1}.output.LayerNorm."),
        *rows(f"encoder.layers.0.{qkv}", "bert.embeddings.LayerNorm."),
        *rows(f"{_OURS}{fc1}", f"{_THEIRS}attention.output.LayerNorm."),
        *rows("encoder.final_layernorm.", "bert.encoder.layer.{last}.output.LayerNorm."),
    ]


def _pre_norms() -> list[Row]:
    return [
        *rows(f"{_OURS}self_attention.linear_qkv.layer_norm_", f"{_THEIRS}attention.ln."),
        *rows(f"{_OURS}mlp.linear_fc1.layer_norm_", f"{_THEIRS}ln."),
        *rows("encoder.final_layernorm.", "bert.encoder.ln."),
    ]


@dataclass(frozen=True, kw_only=True)
class _Gelu:
    """The non-linearity of the layers and of the head in front of the output layer, the same."""

    def read(self, values: Values) -> Fields:
        """Flags of GELU: the head has the tanh form with `openai_gelu` only."""
        kind = values.take("hidden_act", "gelu")
        if kind not in ("gelu", *_TANH):
            values.fault(f"hidden_act = {kind!r}: the head for masked tokens has GELU")
        return {"bias_gelu_fusion": False, "openai_gelu": kind in _TANH}

    def write(self, config: ModelConfig) -> Fields:
        """Its name."""
        return {"hidden_act": "gelu_new" if config.openai_gelu else "gelu"}


@dataclass(frozen=True, kw_only=True)
class _Types:
    """The table of token types has two rows."""

    def read(self, values: Values) -> Fields:
        """Nothing but that check."""
        values.only("type_vocab_size", 2)
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """Its size."""
        return {"type_vocab_size": 2}


def _family(name: str, architecture: str, norms: list[Row], *, post_norm: bool) -> Family:
    return Family(
        name=name,
        architecture=f"{architecture}ForPreTraining",
        other_architectures=(f"{architecture}ForMaskedLM", f"{architecture}Model"),
        parts=(
            Sizes(
                names={
                    "num_layers": "num_hidden_layers",
                    "hidden_size": "hidden_size",
                    "ffn_hidden_size": "intermediate_size",
                    "num_attention_heads": "num_attention_heads",
                    "max_position_embeddings": "max_position_embeddings",
                },
            ),
            Norms(name="layer_norm_eps", epsilon=1e-12, kind="LayerNorm"),
            _Gelu(),
            _Types(),
            Fixed(
                fields={
                    "model_family": "bert",
                    "position_embedding_type": "learned_absolute",
                    "apply_residual_connection_post_layernorm": post_norm,
                },
                only={"position_embedding_type": "absolute", "is_decoder": False},
            ),
            Dropout(
                attention=("attention_probs_dropout_prob", 0.1),
                hidden=("hidden_dropout_prob",),
                hidden_default=0.1,
            ),
            Tied(default=True),
        ),
        table=[*_shared(), *norms],
        prefix="bert.",
        computed=("*.position_ids", "cls.predictions.decoder.bias"),
        harmless=frozenset(("classifier_dropout", "gradient_checkpointing")),
    )


BERT = _family("bert", "Bert", _post_norms(), post_norm=True)
MEGATRON_BERT = _family("megatron-bert", "MegatronBert", _pre_norms(), post_norm=False)

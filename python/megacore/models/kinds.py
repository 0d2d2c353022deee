"""Settings of the kind of model, and of what only encoders and encoder-decoders have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.errors import Fault

# Without the same values the weights of another model mean nothing.
KIND_SETTINGS = (
    "model_family",
    "bert_binary_head",
    "decoder_num_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "relu",
    "lm_head_bias",
    "scale_tied_output",
)

_T5_ONLY = {
    "decoder_num_layers": "--decoder-num-layers",
    "lm_head_bias": "--no-lm-head-bias",
    "scale_tied_output": "--scale-tied-output",
}
_GPT_ONLY = {
    "window_size": "--window-size",
    "attn_logit_softcapping": "--attn-logit-softcapping",
    "final_logit_softcapping": "--final-logit-softcapping",
}
_NO_DECODER = {
    "sandwich_norm": "--sandwich-norm",
    "parallel_residual": "--use-parallel-residual",
    "qk_layernorm": "--qk-layernorm",
}


@dataclass(frozen=True, kw_only=True)
class KindConfig:
    """The part of `ModelConfig` that says what a model is made of."""

    model_family: str = flag(
        "--model-family",
        default="gpt",
        choices=("gpt", "bert", "t5"),
        help="decoder, encoder, or encoder and decoder; pretrain_bert.py and pretrain_t5.py set it",
    )
    bert_binary_head: bool = flag(
        "--bert-no-binary-head",
        default=True,
        help="BERT without token types, pooler and sentence-order head",
    )
    decoder_num_layers: int | None = flag(
        "--decoder-num-layers",
        default=None,
        help="T5: layers of the decoder; default those of the encoder",
        bounds="[1, inf)",
    )
    relative_attention_num_buckets: int = flag(
        "--relative-attention-num-buckets",
        default=32,
        help="T5 with relative positions: distances that have a bias of their own",
        bounds="[4, inf)",
    )
    relative_attention_max_distance: int = flag(
        "--relative-attention-max-distance",
        default=128,
        help="T5 with relative positions: distance from which on all have the same bias",
        bounds="[2, inf)",
    )
    relu: bool = flag(
        "--relu", default=False, help="activation relu(x), as in T5 1.0; exclusive with others"
    )
    lm_head_bias: bool = flag(
        "--no-lm-head-bias",
        default=True,
        help="T5 with tied embeddings: no bias of the logits",
    )
    scale_tied_output: bool = flag(
        "--scale-tied-output",
        default=False,
        help="T5: hidden states are divided by the square root of the hidden size before the "
        "output layer (T5 1.0)",
    )

    def kind_faults(self, position_kind: str) -> Iterator[Fault]:
        """Settings that this kind of model does not have.

        Args:
            position_kind: Kind of positions.
        """
        family = self.model_family
        shown: dict[str, object] = {"--model-family": family}
        if not self.bert_binary_head and family != "bert":
            yield fault("MC1320", {**shown, "--bert-no-binary-head": ""}, allowed="bert")
        for name, flag_name in _T5_ONLY.items() if family != "t5" else ():
            if self._is_given(name):
                value = getattr(self, name)
                given = {**shown, flag_name: "" if isinstance(value, bool) else value}
                yield fault("MC1320", given, allowed="t5")
        if position_kind == "relative" and family != "t5":
            yield fault("MC1320", {**shown, "--position-embedding-type": "relative"}, allowed="t5")
        refused = {
            **(_GPT_ONLY if family != "gpt" else {}),
            **(_NO_DECODER if family == "t5" else {}),
        }
        for name, flag_name in refused.items():
            if self._is_given(name):
                value = getattr(self, name)
                given = {**shown, flag_name: "" if isinstance(value, bool) else value}
                allowed = "gpt or bert" if name in _NO_DECODER else "gpt"
                yield fault("MC1320", given, allowed=allowed)

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

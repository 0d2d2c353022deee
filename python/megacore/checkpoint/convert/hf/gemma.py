"""Gemma 1.

Source: `GemmaConfig` and `modeling_gemma` of transformers 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.gemma_parts import GEMMA_FIXED, GEMMA_ONLY
from megacore.checkpoint.convert.hf.llama_names import LLAMA_SIZES, llama_table
from megacore.checkpoint.convert.hf.parts import (
    Activation,
    Dropout,
    Fields,
    Fixed,
    Norms,
    Sizes,
    Tied,
    activation_fields,
)
from megacore.checkpoint.convert.hf.rope import Rope
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class _Activation(Activation):
    """The first releases say "gelu" in `hidden_act` and mean its tanh form."""

    def read(self, values: Values) -> Fields:
        kind = values.take(self.name, _TANH)
        newer = values.take("hidden_activation", None)
        if newer is None and kind == "gelu":
            kind = _TANH
            values.remarks.append(
                'hidden_act "gelu" of this Gemma means the tanh form, as in transformers'
            )
        return activation_fields(values, self.name, newer or kind, gated=True)

    def write(self, config: ModelConfig) -> Fields:
        values = Activation.write(self, config)
        return values | {"hidden_activation": values[self.name]}


FAMILY = Family(
    name="gemma",
    architecture="GemmaForCausalLM",
    parts=(
        Sizes(names=LLAMA_SIZES, groups=16, head_dim=256),
        Norms(name="rms_norm_eps", epsilon=1e-6, zero_centered=True),
        _Activation(name="hidden_act", default=_TANH, gated=True),
        Rope(),
        Fixed(fields=GEMMA_FIXED, only=GEMMA_ONLY),
        Dropout(attention=("attention_dropout", 0.0)),
        Tied(default=True),
    ),
    table=llama_table(),
)

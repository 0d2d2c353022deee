"""What the generations of Gemma have in common beyond Llama."""

from __future__ import annotations

from dataclasses import dataclass

from megacore.checkpoint.convert.hf.parts import Fields
from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

GEMMA_FIXED: Fields = {"add_bias_linear": False, "scale_embeddings": True}
GEMMA_ONLY: Fields = {"attention_bias": False, "use_bidirectional_attention": False}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scale and caps of attention scores and logits (Gemma 2 and 3).

    Attributes:
        attention_cap: Default of attn_logit_softcapping; None when the family has none (Gemma 3 of
            transformers reads it from the file and does not use it).
        final_cap: Default of final_logit_softcapping.
    """

    attention_cap: float | None
    final_cap: float | None

    def read(self, values: Values) -> Fields:
        """Scale and caps; null is no cap."""
        scalar = values.number("query_pre_attn_scalar", 256)
        if scalar is not None and scalar <= 0:
            values.fault("query_pre_attn_scalar must be positive")
            scalar = 1.0
        return {
            "softmax_scale": None if scalar is None else scalar**-0.5,
            "attn_logit_softcapping": self._attention_cap(values),
            "final_logit_softcapping": _cap(values, "final_logit_softcapping", self.final_cap),
        }

    def _attention_cap(self, values: Values) -> float | None:
        if self.attention_cap is not None:
            return _cap(values, "attn_logit_softcapping", self.attention_cap)
        values.only("attn_logit_softcapping", None)
        return None

    def write(self, config: ModelConfig) -> Fields:
        """Scale and caps."""
        width = config.kv_channels or 1
        scale = config.softmax_scale
        scalar = float(width) if scale is None else scale**-2
        whole = round(scalar)
        # The scale that was made from a whole number has this as its neighbour.
        if scale is None or whole**-0.5 == scale:
            scalar = whole
        return {
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }


def _cap(values: Values, name: str, default: float | None) -> float | None:
    found: float | None = values.number(name, None) if name in values else default
    return found

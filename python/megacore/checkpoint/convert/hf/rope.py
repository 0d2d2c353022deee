"""Rotary positions of a `config.json`: base, rotated part and scaling.

transformers 4 has `rope_theta`, `rope_scaling` and `partial_rotary_factor` at the top,
transformers 5 all of it in `rope_parameters`. Both are read; written is the older form, which both
understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megacore.checkpoint.convert.hf.parts import Fields
from megacore.checkpoint.convert.hf.values import Values
from megacore.layers.rotary_scaling import longrope_attention_factor, yarn_attention_factor
from megacore.models.config import ModelConfig

_SCALING = "rope_scaling"
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: Default of the base.
        percent: Default of the rotated part of a head.
        theta_name: Their name of the base in the older form.
        percent_name: Their name of the rotated part in the older form; None when it is all.
        aliases: Other names of kinds of scaling -> the usual name.
        top_length: The original length stands at the top and not in the scaling (Phi-3).
    """

    theta: float = 10000.0
    percent: float = 1.0
    theta_name: str = "rope_theta"
    percent_name: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    top_length: bool = False

    def read(self, values: Values) -> Fields:
        """Fields of rotary positions."""
        found = dict(_mapping(values, "rope_parameters"))
        scaling = dict(_mapping(values, _SCALING))
        # As transformers 5: an old scaling replaces the new dictionary, and what stands in a
        # dictionary is stronger than what stands at the top.
        found = scaling or found
        theta = found.pop("rope_theta", None) or values.take(self.theta_name, self.theta)
        values.take("rope_theta", None)
        # transformers 4 may have the rotated part under both names.
        percents = [
            found.pop("partial_rotary_factor", None),
            values.take(self.percent_name or "partial_rotary_factor", None),
            values.take("partial_rotary_factor", None),
        ]
        given = [value for value in percents if value is not None]
        if len(set(given)) > 1:
            values.fault(f"two different rotated parts of a head: {given[0]!r} and {given[-1]!r}")
        percent = _as_number(values, "partial_rotary_factor", given[0] if given else self.percent)
        fields: Fields = {
            "position_embedding_type": "rope",
            "rotary_base": whole_base(values, theta),
            "rotary_percent": percent,
        }
        length = values.take(_ORIGINAL, None) if self.top_length else None
        return fields | self.scaling_fields(values, found, length)

    def scaling_fields(self, values: Values, found: dict[str, Any], length: int | None) -> Fields:
        """Fields of a scaling.

        Args:
            values: The file, for what is wrong.
            found: Its dictionary, whose entries are taken.
            length: The original length, when it stands at the top.
        """
        kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
        found.pop("type", None)
        kind = dict(self.aliases).get(kind, kind)
        positions = values.take("max_position_embeddings")
        original = found.pop(_ORIGINAL, None)
        length = length or original or positions
        fields: Fields = {}
        if kind == "linear":
            fields = {"rope_scaling_factor": _number(values, found, "factor")}
        elif kind == "llama3":
            fields = {
                "rope_scaling_factor": _number(values, found, "factor"),
                "rope_scaling_low_freq_factor": _number(values, found, "low_freq_factor"),
                "rope_scaling_high_freq_factor": _number(values, found, "high_freq_factor"),
                "rope_scaling_original_length": length,
            }
        elif kind == "yarn":
            fields = _yarn(values, found, length, positions)
        elif kind == "longrope":
            fields = _longrope(values, found, length, positions)
        elif kind != "default":
            known = "default, linear, llama3, yarn, longrope"
            values.fault(f"rope_scaling of type {kind!r} cannot be converted, only {known}")
            found.clear()
        if kind != "default":
            fields["rope_scaling_type"] = kind
        for name, value in found.items():
            if value is not None and value != [] and value is not False:
                values.fault(f"{_SCALING}: {name} = {value!r} is not known for type {kind!r}")
        return fields

    def write(self, config: ModelConfig) -> Fields:
        """The older form. That a model has no rotary positions is found by reading it back."""
        scaling = scaling_values(config)
        result: Fields = {self.theta_name: float(config.rotary_base), _SCALING: scaling}
        if self.percent_name is not None:
            result[self.percent_name] = config.rotary_percent
        if self.top_length:
            length = None if scaling is None else scaling.pop(_ORIGINAL, None)
            result[_ORIGINAL] = length or config.max_position_embeddings
            if scaling is not None and length is not None:
                result[_SCALING] = _short_form(scaling, length, config.max_position_embeddings or 1)
        return result


def _short_form(scaling: dict[str, Any], length: int, positions: int) -> dict[str, Any]:
    """The three entries that older versions insist on, where they say everything."""
    usual = longrope_attention_factor(positions / length, length)
    if scaling["rope_type"] != "longrope" or scaling["attention_factor"] != usual:
        return scaling
    factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
    return {"type": "longrope", **factors}


def whole_base(values: Values, theta: Any) -> int:
    """The base of rotary positions, which must be a whole number."""
    if not isinstance(theta, int | float) or isinstance(theta, bool) or theta != int(theta):
        values.fault(f"rope_theta = {theta!r} is not a whole number")
        return 1
    return int(theta)


def scaling_values(config: ModelConfig) -> dict[str, Any] | None:
    """The dictionary of a scaling, or None."""
    kind, factor = config.scaling_kind, config.rope_scaling_factor
    interpolation = config.rotary_seq_len_interpolation_factor or 1
    if kind is None:
        return (
            {"rope_type": "linear", "factor": float(interpolation)} if interpolation > 1 else None
        )
    result: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return result
    original = config.original_length or 0
    result[_ORIGINAL] = original
    attention = config.rope_scaling_attention_factor
    if kind == "llama3":
        result["low_freq_factor"] = config.rope_scaling_low_freq_factor
        result["high_freq_factor"] = config.rope_scaling_high_freq_factor
    elif kind == "yarn":
        result["beta_fast"] = config.rope_scaling_beta_fast
        result["beta_slow"] = config.rope_scaling_beta_slow
        result["truncate"] = config.rope_scaling_truncate
        result["attention_factor"] = attention or yarn_attention_factor(factor)
    else:
        result["short_factor"] = list(config.rope_scaling_short_factors or ())
        result["long_factor"] = list(config.rope_scaling_long_factors or ())
        result["attention_factor"] = attention or longrope_attention_factor(factor, original)
    return result


def _yarn(
    values: Values, found: dict[str, Any], length: int | None, positions: int | None
) -> Fields:
    factor = found.pop("factor", None)
    if factor is None and length and positions:
        factor = positions / length
    factor = _as_number(values, "factor", factor)
    mscale, every = found.pop("mscale", None), found.pop("mscale_all_dim", None)
    attention = found.pop("attention_factor", None)
    if attention is None:
        attention = yarn_attention_factor(factor)
        if mscale and every:
            attention = yarn_attention_factor(factor, mscale)
            attention /= yarn_attention_factor(factor, every)
    return {
        "rope_scaling_factor": factor,
        "rope_scaling_original_length": length,
        "rope_scaling_beta_fast": float(found.pop("beta_fast", None) or 32),
        "rope_scaling_beta_slow": float(found.pop("beta_slow", None) or 1),
        "rope_scaling_truncate": found.pop("truncate", True) is not False,
        "rope_scaling_attention_factor": _as_number(values, "attention_factor", attention),
    }


def _longrope(
    values: Values, found: dict[str, Any], length: int | None, positions: int | None
) -> Fields:
    factor = found.pop("factor", None)
    if factor is None and length and positions:
        factor = positions / length
    factor = max(_as_number(values, "factor", factor), 1.0)
    attention = found.pop("attention_factor", None)
    if attention is None:
        attention = longrope_attention_factor(factor, length or 2)
    fields: Fields = {
        "rope_scaling_factor": factor,
        "rope_scaling_original_length": length,
        "rope_scaling_attention_factor": _as_number(values, "attention_factor", attention),
    }
    for name in ("short_factor", "long_factor"):
        factors = found.pop(name, None)
        if not isinstance(factors, list) or not all(_is_number(x) for x in factors):
            values.fault(f"{_SCALING}: {name} = {factors!r} is not a list of numbers")
            factors = []
        fields[f"rope_scaling_{name}s"] = tuple(float(x) for x in factors)
    return fields


def _number(values: Values, found: dict[str, Any], name: str) -> float:
    return _as_number(values, name, found.pop(name, None))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(values: Values, name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        values.fault(f"{_SCALING}: {name} = {value!r} is not a positive number")
        return 1.0
    return float(value)


def _mapping(values: Values, name: str) -> Mapping[str, Any]:
    found = values.take(name, None)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        values.fault(f"{name} = {found!r} is not a dictionary")
        return {}
    return found

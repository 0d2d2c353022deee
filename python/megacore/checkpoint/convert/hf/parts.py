"""Parts of a `config.json` and what they mean for a `ModelConfig`, in both directions.

A family is a list of parts. Reading merges the fields of all, writing the values of all; whether a
model is expressed completely is found by reading back what was written (`family.Family.express`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from megacore.checkpoint.convert.hf.values import Values
from megacore.models.config import ModelConfig

Fields = dict[str, Any]


class Part(Protocol):
    """Some values of `config.json` that belong together."""

    def read(self, values: Values) -> Fields:
        """Fields of `ModelConfig`; what is wrong is noted in `values`."""
        ...

    def write(self, config: ModelConfig) -> Fields:
        """Values of `config.json` for a resolved configuration."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Fields that are the same for all models of the family, and say nothing in the file.

    Attributes:
        fields: Fields of `ModelConfig`.
        only: Values that must be these when they are there, and are not written.
    """

    fields: Fields
    only: Fields

    def read(self, values: Values) -> Fields:
        """The fields."""
        for name, allowed in self.only.items():
            values.only(name, allowed)
        return dict(self.fields)

    def write(self, config: ModelConfig) -> Fields:
        """Nothing."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Depth, widths and heads.

    Attributes:
        names: Our field -> their name.
        groups: Default of num_key_value_heads; None for as many as heads. Without
            "num_query_groups" in `names` there are as many as heads.
        head_dim: Default of the head size; None for hidden size / heads. Without "kv_channels" in
            `names` it is always that.
        inner: Times the hidden size is the default of the inner width; None when it is required.
    """

    names: dict[str, str]
    groups: int | None = None
    head_dim: int | None = None
    inner: int | None = None

    def read(self, values: Values) -> Fields:
        """Sizes."""
        names = self.names
        found: Fields = {
            field: values.integer(names[field])
            for field in ("num_layers", "hidden_size", "num_attention_heads")
        }
        found["max_position_embeddings"] = values.integer(names["max_position_embeddings"])
        heads, hidden = found["num_attention_heads"], found["hidden_size"]
        if self.inner is None:
            found["ffn_hidden_size"] = values.integer(names["ffn_hidden_size"])
        else:
            found["ffn_hidden_size"] = values.integer(
                names["ffn_hidden_size"], self.inner * (hidden or 1)
            )
        if "num_query_groups" in names:
            groups = values.integer(names["num_query_groups"], self.groups or heads)
            found |= {"group_query_attention": groups != heads, "num_query_groups": groups or 1}
        default = self.head_dim
        if default is None and hidden and heads:
            default = hidden // heads
            if hidden % heads and names.get("kv_channels", "") not in values:
                values.fault(f"{hidden} channels are not a multiple of {heads} heads")
        found["kv_channels"] = default
        if "kv_channels" in names:
            found["kv_channels"] = values.integer(names["kv_channels"], default)
        return found

    def write(self, config: ModelConfig) -> Fields:
        """Sizes, all of them."""
        return {name: getattr(config, field) for field, name in self.names.items()}


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Epsilon of the norms, and what is fixed about them.

    Attributes:
        name: Their name of the epsilon.
        epsilon: Its default.
        kind: "LayerNorm" or "RMSNorm".
        zero_centered: Weights are stored minus one.
    """

    name: str
    epsilon: float
    kind: str = "RMSNorm"
    zero_centered: bool = False

    def read(self, values: Values) -> Fields:
        """Kind and epsilon."""
        return {
            "normalization": self.kind,
            "norm_epsilon": values.number(self.name, self.epsilon),
            "apply_layernorm_1p": self.zero_centered,
        }

    def write(self, config: ModelConfig) -> Fields:
        """Epsilon."""
        return {self.name: config.norm_epsilon}


_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")


@dataclass(frozen=True, kw_only=True)
class Activation:
    """Non-linearity of the MLP.

    Attributes:
        name: Their name of it.
        default: What transformers takes when it is not there.
        gated: The MLP has a gate.
        tanh: How the family calls GELU in its tanh form.
    """

    name: str
    default: str
    gated: bool
    tanh: str = "gelu_pytorch_tanh"

    def read(self, values: Values) -> Fields:
        """Flags of the activation."""
        kind = values.take(self.name, self.default)
        return activation_fields(values, self.name, kind, gated=self.gated)

    def write(self, config: ModelConfig) -> Fields:
        """Its name, also when the family has it with another gate: reading back finds that."""
        if config.swiglu:
            return {self.name: "silu"}
        if config.squared_relu:
            return {self.name: "relu2"}
        if config.quick_gelu:
            return {self.name: "quick_gelu"}
        is_tanh = config.openai_gelu or config.bias_gelu_fusion
        return {self.name: self.tanh if is_tanh else "gelu"}


def activation_fields(values: Values, name: str, kind: Any, *, gated: bool) -> Fields:
    """Flags of an activation that transformers calls `kind`."""
    # Without these two GELU has its exact form.
    exact: Fields = {"bias_gelu_fusion": False, "geglu": gated}
    if kind in _TANH:
        # Megatron-LM has the tanh form with biases only, as what its fused kernel computes.
        return exact | ({"openai_gelu": True} if gated else {"bias_gelu_fusion": True})
    if kind == "gelu":
        return exact
    if kind == "quick_gelu":
        return exact | {"quick_gelu": True}
    if kind in ("silu", "swish") and gated:
        return {"swiglu": True}
    if kind == "relu2" and not gated:
        return {"squared_relu": True}
    what = "gated " if gated else ""
    values.fault(f"{name} = {kind!r}: there is no such {what}MLP")
    return {}


@dataclass(frozen=True, kw_only=True)
class Tied:
    """Whether the output layer is the word embedding."""

    default: bool

    def read(self, values: Values) -> Fields:
        """The flag."""
        tied = values.switch("tie_word_embeddings", self.default)
        return {"untie_embeddings_and_output_weights": not tied}

    def write(self, config: ModelConfig) -> Fields:
        """The flag."""
        return {"tie_word_embeddings": not config.untie_embeddings_and_output_weights}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers with one field each.

    Attributes:
        names: Our field -> their name and the default of transformers.
    """

    names: dict[str, tuple[str, float | None]]

    def read(self, values: Values) -> Fields:
        """The numbers."""
        return {
            field: values.number(name, default) for field, (name, default) in self.names.items()
        }

    def write(self, config: ModelConfig) -> Fields:
        """The numbers."""
        return {name: getattr(config, field) for field, (name, _) in self.names.items()}


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Drop probabilities in training: where a family has several for one of ours, the first counts.

    Attributes:
        attention: Their name of that of attention weights, and its default.
        hidden: Their names of that of branches and embeddings, and their default.
    """

    attention: tuple[str, float]
    hidden: tuple[str, ...] = ()
    hidden_default: float = 0.0

    def read(self, values: Values) -> Fields:
        """Probabilities."""
        name, default = self.attention
        found = [values.number(name, self.hidden_default) for name in self.hidden]
        if len(set(found)) > 1:
            named = ", ".join(f"{n} = {v}" for n, v in zip(self.hidden, found, strict=True))
            values.remarks.append(f"{named}: training applies the first of them everywhere")
        return {
            "attention_dropout": values.number(name, default),
            "hidden_dropout": found[0] if found else 0.0,
        }

    def write(self, config: ModelConfig) -> Fields:
        """Probabilities."""
        hidden = dict.fromkeys(self.hidden, config.hidden_dropout)
        return {self.attention[0]: config.attention_dropout, **hidden}

"""A family of Hugging Face models: its configuration and its table of tensors."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from megacore.checkpoint.convert.hf.parts import Fields, Part
from megacore.checkpoint.convert.hf.rules import Row, Rule, rules_for
from megacore.checkpoint.convert.hf.values import Values
from megacore.errors import CheckpointError, ConfigError
from megacore.layers.rotary_scaling import LinearScaling
from megacore.layers.spec import TransformerSpec
from megacore.models.config import ModelConfig
from megacore.models.resolve import transformer_spec
from megacore.models.select import parameter_shapes

# What of a specification is about training or the way of computing, not about the function.
_NOT_ARCHITECTURE = {"attention_dropout", "hidden_dropout", "fp32_residual", "scale_by_layer"}

# What a specification of layers does not say about a model.
_OF_WHOLE_MODEL = (
    "model_family",
    "position_embedding_type",
    "untie_embeddings_and_output_weights",
    "bert_binary_head",
    "decoder_num_layers",
    "lm_head_bias",
    "scale_tied_output",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known about the models of one `model_type`.

    Attributes:
        name: `model_type` in `config.json`.
        architecture: Class of transformers with all heads, as written.
        other_architectures: Classes whose files may hold all tensors of that one.
        parts: Parts of `config.json`.
        table: Names and layout of tensors.
        gated_table: Those of models whose MLP has a gate, where they are others.
        is_encoder_decoder: As `config.json` says.
        prefix: What names begin with, except in files of the model without its output layer.
        computed: Patterns of names that older files have though they can be computed.
        harmless: Names of values in `config.json` that change nothing, besides the usual ones.
    """

    name: str
    architecture: str
    other_architectures: tuple[str, ...] = ()
    parts: tuple[Part, ...]
    table: Sequence[Row]
    gated_table: Sequence[Row] | None = None
    is_encoder_decoder: bool = False
    prefix: str = "model."
    computed: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    harmless: frozenset[str] = frozenset()

    def read(self, values: Mapping[str, Any], where: str) -> tuple[ModelConfig, list[str]]:
        """The configuration of a model, resolved, and remarks for the user.

        Args:
            values: `config.json`.
            where: What messages call it.

        Raises:
            CheckpointError: Something in it cannot be expressed; all of it is listed.
        """
        found = Values(values, where)
        found.only("is_encoder_decoder", self.is_encoder_decoder)
        found.only("add_cross_attention", False)
        names = found.take("architectures", None) or [self.architecture]
        base = self.architecture.replace("ForCausalLM", "Model").replace("LMHeadModel", "Model")
        for name in names if isinstance(names, list) else [names]:
            if name not in (self.architecture, base, *self.other_architectures):
                found.fault(f"architectures: {name!r} cannot be converted, {self.architecture} can")
        if found.take("auto_map", None) is not None:
            found.remarks.append(
                f"{where} names code of its own (auto_map); the model is taken to be the "
                f"{self.architecture} of transformers"
            )
        settings: Fields = {"init_method_std": found.number("initializer_range", 0.02)}
        for part in self.parts:
            settings |= part.read(found)
        found.finish(self.harmless)
        if settings.get("window_size") is None:
            settings.pop("rotary_base_local", None)
        try:
            return ModelConfig(**settings).resolved(), found.remarks
        except ConfigError as error:
            raise CheckpointError(f"{where} cannot be converted: {error}") from error

    def express(self, config: ModelConfig) -> Fields:
        """Values of `config.json` for a model.

        Args:
            config: Resolved.

        Raises:
            CheckpointError: The family cannot express it; all that would be lost is listed.
        """
        values: Fields = {"model_type": self.name, "architectures": [self.architecture]}
        values["initializer_range"] = config.init_method_std
        if self.is_encoder_decoder:
            values["is_encoder_decoder"] = True
        for part in self.parts:
            values |= part.write(config)
        # What a family cannot express is what is different after reading what it wrote.
        try:
            again, _ = self.read(values, self.name)
        except CheckpointError as error:
            raise CheckpointError(f"a {self.name} cannot be this model: {error}") from error
        lost = list(_differences(config, again))
        if lost:
            raise CheckpointError(f"a {self.name} cannot be this model:\n  " + "\n  ".join(lost))
        return values

    def rules(self, config: ModelConfig) -> dict[str, Rule]:
        """Canonical name -> rule, for every tensor of a model.

        Args:
            config: Resolved.

        Raises:
            CheckpointError: The family has no tensor for one of the model's.
        """
        names = list(parameter_shapes(config, padded_vocab_size=1))
        table = self.gated_table if config.gated and self.gated_table else self.table
        try:
            return rules_for(table, names, transformer_spec(config))
        except KeyError as error:
            raise CheckpointError(
                f"a {self.name} has no tensor for {error.args[0]} of this model"
            ) from error

    def is_computed(self, name: str) -> bool:
        """Whether a tensor of a file is one that can be computed."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.computed)


def _differences(wanted: ModelConfig, found: ModelConfig) -> Iterator[str]:
    """What is not the same function, in words."""
    before, after = (_normal(transformer_spec(config)) for config in (wanted, found))
    for entry in fields(TransformerSpec):
        left, right = getattr(before, entry.name), getattr(after, entry.name)
        if left != right and entry.name not in _NOT_ARCHITECTURE:
            yield f"{entry.name} is {left}, it would become {right}"
    names = [*_OF_WHOLE_MODEL]
    if wanted.position_embedding_type == "learned_absolute":
        names.append("max_position_embeddings")
    if wanted.position_embedding_type == "relative":
        names += ["relative_attention_num_buckets", "relative_attention_max_distance"]
    for name in names:
        if getattr(wanted, name) != getattr(found, name):
            yield f"{name} is {getattr(wanted, name)}, it would become {getattr(found, name)}"


def _normal(spec: TransformerSpec) -> TransformerSpec:
    """The same function in the one form that comparisons use."""
    window = spec.window if spec.window is not None and any(spec.window.layers) else None
    rotary = spec.rotary
    if rotary is not None and rotary.scaling is None and rotary.interpolation != 1.0:
        # Divided positions are divided frequencies.
        scaling = LinearScaling(factor=rotary.interpolation)
        rotary = replace(rotary, interpolation=1.0, scaling=scaling)
    return replace(
        spec,
        window=window,
        rotary=rotary,
        local_rotary=None if window is None else spec.local_rotary or rotary,
        qkv_bias=spec.qkv_bias or spec.linear_bias,
        softmax_scale=spec.softmax_scale or spec.head_dim**-0.5,
    )

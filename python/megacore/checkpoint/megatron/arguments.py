"""The `args` of a Megatron checkpoint as settings of megacore, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from megacore.checkpoint.torch_files import Record
from megacore.errors import CheckpointError
from megacore.models.config import ModelConfig

NAMESPACE = "argparse.Namespace"

# What old releases called a setting.
_RENAMED = {"layernorm_epsilon": "norm_epsilon"}
# Settings that a core model of Megatron-LM has but does not look at.
_WITHOUT_EFFECT_IN_CORE = {"openai_gelu": False, "rotary_seq_len_interpolation_factor": None}
# A setting that Megatron-LM does not have: args with it were written by a conversion of megacore.
_OWN_SETTING = "geglu"
# Settings that make another kind of model.
_OTHER_MODELS = {
    "num_experts": "a mixture of experts",
    "retro_add_retriever": "a retrieval-augmented model",
    "hybrid_override_pattern": "a Mamba hybrid",
    "multi_latent_attention": "multi-latent attention",
}

Plain = None | bool | int | float | str | list[Any]


def stored_fields(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the args in the file of a rank; empty when it has none."""
    args = state.get("args")
    if isinstance(args, Record):
        return dict(args.fields)
    return dict(args) if isinstance(args, Mapping) else {}


def settings_of_args(args: Mapping[str, Any], *, is_legacy: bool, is_own: bool) -> dict[str, Plain]:
    """The args as settings of megacore, with the meaning that they have in Megatron-LM.

    Args:
        args: Attributes of the stored namespace.
        is_legacy: The model is a legacy one.
        is_own: megacore wrote the checkpoint: nothing has to be translated.

    Returns:
        Setting -> value as JSON can hold it. Values of other kinds are left out.
    """
    settings: dict[str, Plain] = {}
    for name, value in args.items():
        plain, is_plain = _plain(value)
        if is_plain:
            settings[_RENAMED.get(name, name)] = plain
    if is_own or _OWN_SETTING in settings:
        return settings
    settings["position_embedding_type"] = _position_kind(settings)
    if not settings.get("group_query_attention") and "num_attention_heads" in settings:
        # Without groups Megatron-LM leaves the default here, which it does not look at.
        settings["num_query_groups"] = settings["num_attention_heads"]
    base = settings.get("rotary_base")
    if isinstance(base, float) and base.is_integer():
        settings["rotary_base"] = int(base)
    window = settings.get("window_size")
    if isinstance(window, list):
        settings["window_size"] = ",".join(map(str, window))
    if not is_legacy:
        settings |= _WITHOUT_EFFECT_IN_CORE
    return settings


def _position_kind(settings: Mapping[str, Plain]) -> Plain:
    if settings.get("use_rotary_position_embeddings"):
        return "rope"
    kind = settings.get("position_embedding_type")
    if kind is not None:
        return kind
    return "learned_absolute" if settings.get("add_position_embedding", True) else "none"


def _plain(value: Any) -> tuple[Plain, bool]:
    """A value as JSON can hold it, and whether that is possible."""
    if value is None or isinstance(value, bool | int | float | str):
        return value, True
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return [item for item, _ in items], all(good for _, good in items)
    return None, False


def model_config(settings: Mapping[str, Plain], *, where: str) -> ModelConfig:
    """The architecture that the settings describe, resolved.

    Args:
        settings: As `settings_of_args` gave.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: It is a kind of model that is not supported.
        ConfigError: Sizes are missing or do not fit together.
    """
    refuse_other_models(settings, where=where)
    names = {field.name for field in fields(ModelConfig)}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if name in names
    }
    if chosen.get("num_layers") is not None:
        chosen["encoder_num_layers"] = chosen["num_layers"]
    if chosen.get("position_embedding_type") == "rope":
        chosen["add_position_embedding"] = True
    return ModelConfig(**chosen).resolved()


def refuse_other_models(settings: Mapping[str, Any], *, where: str) -> None:
    """Refuses settings of models that are not dense GPTs.

    Raises:
        CheckpointError: They are; the message says which.
    """
    for name, kind in _OTHER_MODELS.items():
        if settings.get(name):
            raise CheckpointError(
                f"{where}: args.{name} is {settings[name]!r}: {kind} is not supported yet"
            )


def namespace(values: Mapping[str, Any]) -> Record:
    """A namespace with these attributes, as torch.load of another program will see it."""
    return Record(NAMESPACE, fields=dict(values))

"""A model and its tokenizer from a checkpoint, which says how both are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from megacore.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
from megacore.checkpoint.adapters import find_base, holds_adapters
from megacore.checkpoint.convert.tokenizer_files import PATH_FIELDS, resolve
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import Tokenizer, build_tokenizer
from megacore.errors import CheckpointError
from megacore.inference.foreign import foreign_source, model_of, tokenizer_of
from megacore.layers.lora import is_adapter_name
from megacore.models.adapted import add_adapters
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.lora import LoraConfig

_Config = TypeVar("_Config")

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    directory: str | Path,
    *,
    step: int | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    tokenizer_files: Mapping[str, str] | None = None,
) -> tuple[GPTModel, Tokenizer, ModelConfig]:
    """The model of a checkpoint, ready for generation, and the tokenizer it was trained with.

    Args:
        directory: What training was told to `--save` to, or a model in any format that
            `megacore convert` reads.
        step: Iteration to load instead of the newest.
        dtype: "auto" (as trained), "float32", "bfloat16" or "float16".
        device: Where the model goes.
        tokenizer_files: Tokenizer settings that replace the stored ones, such as `vocab_file`.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or does not say what it holds.
        DataError: A tokenizer file is missing or unreadable.
    """
    source = foreign_source(Path(directory), step=step)
    if source is not None:
        description = source.description
        _check_family(description.config, directory)
        tokenizer = tokenizer_of(description, tokenizer_files or {}, where=str(directory))
        model = model_of(source, dtype=None if dtype == "auto" else _DTYPES[dtype], device=device)
        return model, tokenizer, description.config
    checkpoint = load_checkpoint(directory, step=step)
    arguments = stored_arguments(checkpoint)
    config = stored_config(ModelConfig, arguments, checkpoint.path).resolved()
    _check_family(config, checkpoint.path)
    tokenizer_arguments = {**arguments, **(tokenizer_files or {})}
    for name in PATH_FIELDS:
        if tokenizer_arguments.get(name):
            path = resolve(str(tokenizer_arguments[name]), checkpoint.path.parent)
            tokenizer_arguments[name] = str(path)
    tokenizer = build_tokenizer(
        stored_config(TokenizerConfig, tokenizer_arguments, checkpoint.path)
    )
    rows = arguments.get("padded_vocab_size")
    if not isinstance(rows, int):
        raise CheckpointError(
            f"{checkpoint.path}: its args must hold an integer padded_vocab_size, found {rows!r}"
        )
    if dtype == "auto":
        trained = {"bf16": "bfloat16", "fp16": "float16"}
        dtype = next((trained[key] for key in trained if arguments.get(key)), "float32")
    model = GPTModel(config, padded_vocab_size=rows, dtype=_DTYPES[dtype], device=device)
    if holds_adapters(arguments):
        _load_adapted(model, checkpoint, arguments)
    else:
        checkpoint.load_into("model", dict(model.named_parameters()), cast=True)
    return model.eval(), tokenizer, config


def _check_family(config: ModelConfig, where: str | Path) -> None:
    if config.model_family != "gpt":
        raise CheckpointError(
            f"{where}: holds a {config.model_family.upper()}; only GPTs continue and score text"
        )


def _load_adapted(model: GPTModel, checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> None:
    """Gives a model the adapters of a checkpoint, and the weights of their base."""
    add_adapters(model, stored_config(LoraConfig, arguments, checkpoint.path))
    base = open_checkpoint(find_base(arguments, checkpoint.path))
    parameters = dict(model.named_parameters())
    for source, adapters in ((base, False), (checkpoint, True)):
        wanted = {n: p for n, p in parameters.items() if is_adapter_name(n) == adapters}
        source.load_into("model", wanted, cast=True)


def stored_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that a checkpoint was saved with.

    Raises:
        CheckpointError: It does not say them.
    """
    arguments = checkpoint.values.get("args")
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{checkpoint.path}: common.pt has no args to build the model from")
    return arguments


def stored_config(kind: type[_Config], arguments: Mapping[str, Any], path: Path) -> _Config:
    """The stored values of one configuration; what is not stored has its default."""
    names = [field.name for field in fields(kind) if field.name in arguments]  # type: ignore[arg-type]
    if not names:
        raise CheckpointError(f"{path}: its args hold nothing of {kind.__name__}")
    values = {name: arguments[name] for name in names}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

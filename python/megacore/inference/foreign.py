"""A model and its tokenizer from any format that `megacore convert` reads, without converting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from megacore.checkpoint import layout
from megacore.checkpoint.convert import registry, tokenizer_files
from megacore.checkpoint.convert.engine import check_source
from megacore.checkpoint.convert.model_stream import ModelDescription, Source, SourceOptions
from megacore.checkpoint.convert.tokenizer_files import TokenizerFiles
from megacore.data.tokenizers import Tokenizer
from megacore.errors import CheckpointError
from megacore.models.gpt import GPTModel

_WITHOUT_ITERATIONS = ("gguf", "meta", "hf")


def foreign_source(path: Path, *, step: int | None) -> Source | None:
    """What is at `path`, opened, or None when it is no model of another program.

    Raises:
        CheckpointError: It is one, but cannot be read.
    """
    options = SourceOptions(step=step)
    name = registry.recognised(path)
    if name in _WITHOUT_ITERATIONS:
        if step is not None:
            raise CheckpointError(f"{path}: this format has no iterations; leave out --ckpt-step")
        return registry.open_source(path, options, name=name)
    found = layout.find_checkpoint(path, step=step) if path.is_dir() else None
    if found is not None and (layout.has_rank_files(found) or not layout.is_complete(found)):
        return registry.open_source(path, options, name="core")
    return None


@torch.no_grad()
def model_of(source: Source, *, dtype: torch.dtype | None, device: torch.device | str) -> GPTModel:
    """The model of a source, filled one tensor at a time.

    Args:
        source: Where the weights come from.
        dtype: Dtype of the model, None for the source's.
        device: Where the model goes.

    Raises:
        CheckpointError: The tensors are not those of the model, or damaged.
    """
    check_source(source)
    description = source.description
    model = GPTModel(
        description.config,
        padded_vocab_size=description.padded_vocab_size,
        dtype=dtype or description.dtype,
        device=device,
    )
    for name, parameter in model.named_parameters():
        parameter.copy_(source.read(name))
    return model.eval()


def tokenizer_of(
    description: ModelDescription, replaced: Mapping[str, str], *, where: str
) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Args:
        description: The model.
        replaced: Paths that a user names instead: tokenizer_model, vocab_file, merge_file.
        where: The model, for messages.

    Raises:
        CheckpointError: There is none, and none is named.
        ConfigError, DataError: It lacks files, or they cannot be read.
    """
    found = TokenizerFiles(description.tokenizer, description.tokenizer_files)
    if "tokenizer_model" in replaced:
        found = tokenizer_files.of_model(Path(replaced["tokenizer_model"]))
    elif "vocab_file" in replaced:
        merges = replaced.get("merge_file")
        found = tokenizer_files.of_vocabulary(
            Path(replaced["vocab_file"]), None if merges is None else Path(merges)
        )
    if not found.values:
        raise CheckpointError(f"{where}: holds no tokenizer; give --tokenizer-model")
    return tokenizer_files.built(found)

"""A `torch` checkpoint as the source of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from megacore.checkpoint.convert.model_stream import (
    LayoutSizes,
    ModelDescription,
    SourceOptions,
    TensorInfo,
)
from megacore.checkpoint.convert.tokenizer_files import of_arguments
from megacore.checkpoint.megatron.arguments import model_config
from megacore.checkpoint.megatron.checkpoint import MODEL, MegatronCheckpoint
from megacore.checkpoint.megatron.names import OUTPUT_WEIGHT, WORD_EMBEDDING, is_ignored
from megacore.checkpoint.pieces import Part
from megacore.data.config import TokenizerConfig
from megacore.errors import CheckpointError
from megacore.models.config import ModelConfig
from megacore.parallel.layout import full_tensor

_COPY = "the word embedding again, which the last stage had a copy of"


def described(
    settings: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    path: Path,
    iteration: int,
    source_format: str,
    source_layout: LayoutSizes,
    vocab_size: int | None,
) -> ModelDescription:
    """What the settings and tensors of a checkpoint say about its model.

    Args:
        settings: Settings of megacore that the checkpoint holds.
        tensors: Canonical name -> shape and dtype of all tensors of the model.
        path: Directory of the iteration.
        iteration: Iterations completed.
        source_format: For people.
        source_layout: How it was cut.
        vocab_size: True vocabulary size, when it is known better than by the checkpoint.

    Raises:
        CheckpointError: They do not describe a model that is supported.
    """
    if "num_layers" not in settings:
        raise CheckpointError(f"{path}: holds no args: the architecture is not known")
    if WORD_EMBEDDING not in tensors:
        raise CheckpointError(f"{path}: holds no {WORD_EMBEDDING}: not a GPT")
    # Under the second name in an encoder-decoder.
    outputs = (OUTPUT_WEIGHT, f"lm_head.{OUTPUT_WEIGHT}")
    untied = {"untie_embeddings_and_output_weights": any(name in tensors for name in outputs)}
    config = model_config({**settings, **untied}, where=str(path))
    names = tuple(field.name for field in fields(TokenizerConfig))
    tokenizer = of_arguments(settings, names, path.parent)
    taken = {*names, *(field.name for field in fields(ModelConfig))}
    known = settings.get("true_vocab_size")
    return ModelDescription(
        config=config,
        padded_vocab_size=tensors[WORD_EMBEDDING].shape[0],
        vocab_size=vocab_size or (known if isinstance(known, int) else None),
        dtype=tensors[WORD_EMBEDDING].dtype,
        iteration=iteration,
        source_format=source_format,
        source_layout=source_layout,
        tokenizer=tokenizer.values,
        tokenizer_files=tokenizer.files,
        arguments={name: value for name, value in settings.items() if name not in taken},
    )


class MegatronSource:
    """A model of Megatron-LM, core or legacy, in one of its `torch` checkpoints.

    Args:
        path: Directory of the files of its ranks.
        options: What is known better than by the checkpoint.

    Raises:
        CheckpointError: It is not complete, damaged, or of a kind that is not supported.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._checkpoint = MegatronCheckpoint(path, verify=(0, 1))
        self._parts: dict[str, list[Part]] = self._checkpoint.parts(MODEL)
        self._origins = self._checkpoint.model.origins()
        self.description = self._describe(options)

    def _describe(self, options: SourceOptions) -> ModelDescription:
        checkpoint, model = self._checkpoint, self._checkpoint.model
        settings = dict(checkpoint.settings)
        if options.position_embedding_type is not None and not checkpoint.is_own:
            stored = checkpoint.args.get("position_embedding_type")
            settings["position_embedding_type"] = stored or options.position_embedding_type
        return described(
            settings,
            {name: self.info(name) for name in self._parts},
            path=checkpoint.path,
            iteration=checkpoint.iteration,
            source_format=f"Megatron {'legacy' if model.is_legacy else 'core'}, torch",
            source_layout=LayoutSizes(
                tensor=checkpoint.tensor_size,
                pipeline=checkpoint.pipeline_size,
                virtual=checkpoint.virtual_size,
            ),
            vocab_size=options.vocab_size,
        )

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self._parts)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor."""
        part = self._parts[name][0]
        return TensorInfo(part.layout.full_shape, part.data.dtype)

    def read(self, name: str) -> Tensor:
        """A full canonical tensor, put together of the parts of the ranks."""
        parts = self._parts[name]
        if len(parts) == 1 and not parts[0].layout.is_sharded:
            return parts[0].data
        return full_tensor([part.layout for part in parts], [part.data for part in parts])

    def origins(self, name: str) -> tuple[str, ...]:
        """Keys in the files, where layers are numbered anew on every stage."""
        return self._origins[name]

    def unmapped(self) -> dict[str, str]:
        """Tensors that no canonical tensor is made of -> why, "" when they are not known."""
        model = self._checkpoint.model
        found: dict[str, str] = {}
        for chunk in model.all_chunks():
            found |= {key: "" for key in chunk.unknown if not is_ignored(key)}
            if model.tied and OUTPUT_WEIGHT in chunk.keys:
                found[chunk.keys[OUTPUT_WEIGHT]] = _COPY
        return found

    def close(self) -> None:
        """Lets the files go; they are closed when no tensor of them is used any more."""
        self._parts = {}

"""A `torch` checkpoint as the source of a conversion."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

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
        if not settings:
            raise CheckpointError(f"{checkpoint.path}: holds no args: the architecture is unknown")
        if options.position_embedding_type is not None and not checkpoint.is_own:
            stored = checkpoint.args.get("position_embedding_type")
            settings["position_embedding_type"] = stored or options.position_embedding_type
        if WORD_EMBEDDING not in self._parts:
            raise CheckpointError(f"{checkpoint.path}: holds no {WORD_EMBEDDING}: not a GPT")
        settings["untie_embeddings_and_output_weights"] = OUTPUT_WEIGHT in self._parts
        config = model_config(settings, where=str(checkpoint.path))
        names = tuple(field.name for field in fields(TokenizerConfig))
        root = checkpoint.path.parent
        tokenizer = of_arguments(settings, names, root)
        taken = {*names, *(field.name for field in fields(ModelConfig))}
        known = settings.get("true_vocab_size")
        return ModelDescription(
            config=config,
            padded_vocab_size=self._parts[WORD_EMBEDDING][0].layout.full_shape[0],
            vocab_size=options.vocab_size or (known if isinstance(known, int) else None),
            dtype=self._parts[WORD_EMBEDDING][0].data.dtype,
            iteration=checkpoint.iteration,
            source_format=f"Megatron {'legacy' if model.is_legacy else 'core'}, torch",
            source_layout=LayoutSizes(
                tensor=checkpoint.tensor_size,
                pipeline=checkpoint.pipeline_size,
                virtual=checkpoint.virtual_size,
            ),
            tokenizer=tokenizer.values,
            tokenizer_files=tokenizer.files,
            arguments={name: value for name, value in settings.items() if name not in taken},
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

"""What goes from a source format to a target format: a description, then full tensors.

Every format is converted to and from one canonical form, so that n formats need 2 n files. The
canonical form is the full (not sharded) model under the names of `models.gpt.GPTModel`:

- norms in front of projections are `...linear_qkv.layer_norm_*` and `...linear_fc1.layer_norm_*`;
- the rows of `linear_qkv` are grouped per key/value head: its queries, then its key, its value;
- a gated `linear_fc1` is [gate; up];
- `output_layer.weight` is there only when it is not tied to the word embedding;
- weights with one row per vocabulary entry have `ModelDescription.padded_vocab_size` rows.

`engine.convert` drives both sides; a source and a target never meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megacore.models.config import ModelConfig

VOCABULARY_WEIGHTS = (
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "output_layer.bias",
    "lm_head.output_layer.weight",
    "lm_head.output_layer.bias",
)


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a canonical tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class LayoutSizes:
    """How a checkpoint is cut over processes.

    Attributes:
        tensor: Tensor-parallel size.
        pipeline: Pipeline stages.
        virtual: Model chunks per pipeline stage.
        expert: Expert-parallel size.
    """

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    expert: int = 1


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything about a model that is not a tensor.

    Attributes:
        model_type: Kind of model: "GPT".
        config: Its architecture, resolved.
        padded_vocab_size: Rows of the word embedding, padding included.
        vocab_size: Rows that mean something, or None when the source does not say.
        dtype: Of (nearly) all weights; single tensors may differ, see `TensorInfo`.
        iteration: Training iterations completed, 0 for a released model.
        source_format: For people: "Hugging Face llama", "GGUF 3".
        source_layout: How the source was cut; where a target has a layout, that is its default.
        tokenizer: Values of `data.config.TokenizerConfig` by field name. Paths among them
            (tokenizer_model, vocab_file, merge_file) are names in `tokenizer_files`, or "." for
            the directory that these are copied to.
        tokenizer_files: File name -> where it is, or its content.
        arguments: Other settings of the run that trained it, by the name of their field
            (seq_length, consumed_train_samples, ...).
        extra: Values of the source that a target of the same format may carry on.
        remarks: What the user should know, a sentence each.
    """

    model_type: str = "GPT"
    config: ModelConfig
    padded_vocab_size: int
    vocab_size: int | None = None
    dtype: torch.dtype = torch.float32
    iteration: int = 0
    source_format: str = ""
    source_layout: LayoutSizes = LayoutSizes()
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_files: Mapping[str, Path | bytes] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Source(Protocol):
    """A model in some format, open for reading; nothing but headers is read before `read`."""

    @property
    def description(self) -> ModelDescription:
        """What the model is."""
        ...

    def names(self) -> list[str]:
        """Canonical names of all tensors that can be read, in the order of the model."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a canonical tensor, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """A full canonical tensor on the CPU, which may be a view of a file.

        Raises:
            CheckpointError: It is damaged; the message names file and tensor.
        """
        ...

    def origins(self, name: str) -> tuple[str, ...]:
        """Names in the source of the tensors that a canonical tensor is made of."""
        ...

    def unmapped(self) -> dict[str, str]:
        """Tensors of the source that no canonical tensor is made of -> why that is right.

        An empty reason means that the tensor is not known: the conversion is then refused.
        """
        ...

    def close(self) -> None:
        """Closes files; tensors that were read before must not be used any more."""
        ...


class Target(Protocol):
    """A model in some format, being written into a directory that is not published yet.

    The engine makes the directory, copies tokenizer files and publishes by one rename: a target
    only writes, and flushes what it writes (`checkpoint.durable`).

    Attributes:
        format_name: For people: "Hugging Face llama".
        tokenizer_folder: Folder inside the target that tokenizer files go to; "" for the top.
    """

    format_name: str
    tokenizer_folder: str

    def vocabulary_rows(self, description: ModelDescription) -> int:
        """Rows that vocabulary weights have in this format and layout.

        Raises:
            CheckpointError: The format cannot hold this model; the message says why.
        """
        ...

    def begin(
        self,
        directory: Path,
        description: ModelDescription,
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        """Starts a model.

        Args:
            directory: Existing empty directory to write into.
            description: The model, with the padding and dtype that are to be written and with
                tokenizer paths as they will be, relative to `directory`.
            tensors: Every canonical tensor that `write` will get, in that order.

        Raises:
            CheckpointError: The format cannot hold this model; the message says why.
        """
        ...

    def write(self, name: str, tensor: Tensor) -> None:
        """Takes the next full canonical tensor; it must not be kept beyond the call."""
        ...

    def destinations(self, name: str) -> tuple[str, ...]:
        """Names in the target of what a canonical tensor becomes."""
        ...

    def finish(self) -> None:
        """Completes all files; every tensor has been written."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to open a source, for formats that do not say all of it themselves.

    Attributes:
        step: Iteration to read instead of the newest.
        vocab_size: True vocabulary size, when it is known better than by the source.
        position_embedding_type: Kind of positions where the source does not say.
    """

    step: int | None = None
    vocab_size: int | None = None
    position_embedding_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What a target is to look like; None leaves it to the format and the source.

    Attributes:
        tensor: Tensor-parallel size.
        pipeline: Pipeline stages.
        virtual: Model chunks per stage.
        expert: Expert-parallel size.
        ckpt_format: Container of a Megatron-Core checkpoint: "torch" or "torch_dist".
        fused_norms: Write the names of Transformer Engine layers (True) or local ones (False).
        max_shard_bytes: Largest file of a format that is cut by size.
        family: Family of a Hugging Face model, when the source does not decide it.
        make_vocab_size_divisible_by: Padding of the vocabulary per tensor-parallel process.
    """

    tensor: int | None = None
    pipeline: int | None = None
    virtual: int | None = None
    expert: int | None = None
    ckpt_format: str | None = None
    fused_norms: bool | None = None
    max_shard_bytes: int | None = None
    family: str | None = None
    make_vocab_size_divisible_by: int | None = None

    def sizes(self, source: LayoutSizes) -> LayoutSizes:
        """The layout to write: what was asked for, otherwise the source's."""
        return LayoutSizes(
            tensor=self.tensor or source.tensor,
            pipeline=self.pipeline or source.pipeline,
            virtual=self.virtual or (source.virtual if self.pipeline is None else 1),
            expert=self.expert or source.expert,
        )

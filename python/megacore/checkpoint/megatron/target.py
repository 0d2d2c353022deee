"""A `torch` checkpoint as the target of a conversion, core or legacy, cut for any ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint import layout as directories
from megacore.checkpoint.convert.model_stream import (
    LayoutSizes,
    ModelDescription,
    TargetOptions,
    TensorInfo,
)
from megacore.checkpoint.megatron.arguments import namespace
from megacore.checkpoint.megatron.names import (
    OUTPUT_WEIGHT,
    WORD_EMBEDDING,
    layer_of,
    renumbered,
    to_core,
    to_legacy,
)
from megacore.checkpoint.megatron.rank_files import MODEL_FILE, Place
from megacore.checkpoint.megatron.rank_state import (
    CHECKPOINT_VERSION,
    RankParam,
    RankStage,
    legacy_states,
    model_states,
)
from megacore.checkpoint.megatron.splits import full_layout
from megacore.checkpoint.megatron.spool import Spool
from megacore.checkpoint.torch_files import write_torch_file
from megacore.data.tokenizers import padded_vocab_size
from megacore.durable import write_file
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout, copy_boxes
from megacore.parallel.stages import StageLayers, divide_layers

COUNTERS = ("consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")
_DTYPE_FLAGS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class _Slot:
    """Where a rank's part of a tensor is collected.

    Attributes:
        name: Canonical name; of a copy that of the output weight.
        source: Canonical name of the tensor that it is cut from.
        stage: Which of the stages of the rank.
        layout: How it is cut.
        number: In the spool of the rank.
    """

    name: str
    source: str
    stage: int
    layout: ParamLayout
    number: int


class _Rank:
    """The parts of one rank.

    Attributes:
        slots: In any order.
        spool: Holds them.
    """

    def __init__(self, spool: Spool) -> None:
        self.slots: list[_Slot] = []
        self.spool = spool

    def view(self, slot: _Slot) -> Tensor:
        """The memory of a part, in its shape."""
        return self.spool.view(slot.number)


def arguments_of(description: ModelDescription, ckpt_format: str) -> dict[str, Any]:
    """The settings that go into a checkpoint of weights alone.

    Args:
        description: The model.
        ckpt_format: Format of the checkpoint.
    """
    config = description.config
    values: dict[str, Any] = dict.fromkeys(COUNTERS, 0)
    values |= dict(description.arguments)
    values |= {field.name: getattr(config, field.name) for field in fields(config)}
    values |= dict(description.tokenizer)
    values.setdefault("seq_length", config.max_position_embeddings)
    values.setdefault("encoder_seq_length", values["seq_length"])
    is_half = _DTYPE_FLAGS.get(description.dtype)
    return values | {
        "bf16": is_half == "bf16",
        "fp16": is_half == "fp16",
        "true_vocab_size": description.vocab_size,
        "padded_vocab_size": description.padded_vocab_size,
        "iteration": description.iteration,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "num_layers_per_virtual_pipeline_stage": None,
        "expert_model_parallel_size": 1,
        "context_parallel_size": 1,
        "data_parallel_size": 1,
        "world_size": 1,
        "use_distributed_optimizer": False,
        "ckpt_format": ckpt_format,
    }


def rows_of_vocabulary(
    description: ModelDescription, options: TargetOptions, *, tensor_size: int
) -> int:
    """Rows of vocabulary weights: the true size padded, or the source's rows as they are.

    Raises:
        CheckpointError: The ranks cannot be given equally many.
    """
    if description.vocab_size is not None:
        stored = description.arguments.get("make_vocab_size_divisible_by")
        unit = options.make_vocab_size_divisible_by or stored
        return padded_vocab_size(
            description.vocab_size,
            make_divisible_by=unit or description.config.make_vocab_size_divisible_by,
            tensor_parallel_size=tensor_size,
        )
    if description.padded_vocab_size % tensor_size:
        raise CheckpointError(
            f"{description.padded_vocab_size} vocabulary rows cannot be divided among "
            f"{tensor_size} tensor-parallel ranks, and how many of them are padding is not known: "
            "give the true vocabulary size"
        )
    return description.padded_vocab_size


class MegatronTarget:
    """A checkpoint that Megatron-LM loads with `--ckpt-format torch`, weights only.

    Args:
        options: How it is to be cut.
        is_legacy: For legacy models (`--use-legacy-models`).
    """

    def __init__(self, options: TargetOptions, *, is_legacy: bool) -> None:
        self.format_name = f"Megatron {'legacy' if is_legacy else 'core'}, torch"
        self.tokenizer_folder = "tokenizer"
        self._options = options
        self._is_legacy = is_legacy
        self._fused_norms = options.fused_norms is not False
        self._ranks: dict[Place, _Rank] = {}
        self._slots: dict[str, list[tuple[_Rank, _Slot]]] = {}
        self._stages: list[StageLayers] = []

    def vocabulary_rows(self, description: ModelDescription) -> int:
        """Rows of vocabulary weights: the true size padded, or the source's rows as they are.

        Raises:
            CheckpointError: The ranks cannot be given equally many, or the model is not a GPT.
        """
        if description.config.model_family != "gpt":
            raise CheckpointError(
                f"a {description.config.model_family} cannot be written in this format: only "
                "torch_dist holds other models than GPTs"
            )
        size = self._sizes(description).tensor
        return rows_of_vocabulary(description, self._options, tensor_size=size)

    def begin(
        self,
        directory: Path,
        description: ModelDescription,
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        """Plans what each rank gets; arguments and errors as `convert.model_stream.Target`."""
        self._directory = directory
        self._description = description
        self._layers(description)
        name = directories.iteration_name(description.iteration)
        self._name = name if description.iteration else directories.RELEASE
        sizes = self._sizes(description)
        for pipeline in range(sizes.pipeline):
            for tensor in range(sizes.tensor):
                place = Place(tensor, pipeline)
                spool = Spool(directory / f".{place.tensor}-{place.pipeline}.scratch")
                rank = _Rank(spool)
                self._plan(rank, place, sizes, tensors)
                spool.open()
                self._ranks[place] = rank
                for slot in rank.slots:
                    self._slots.setdefault(slot.source, []).append((rank, slot))

    def _layers(self, description: ModelDescription) -> None:
        sizes = self._sizes(description)
        if sizes.expert > 1:
            raise CheckpointError("a dense model has no experts to divide over ranks")
        num_layers, stages = description.config.num_layers or 0, sizes.pipeline * sizes.virtual
        if num_layers % stages:
            raise CheckpointError(
                f"{num_layers} layers cannot be divided equally among {sizes.pipeline} pipeline "
                f"ranks of {sizes.virtual} stages"
            )
        heads = description.config.num_query_groups
        if heads % sizes.tensor:
            raise CheckpointError(
                f"{heads} groups of query heads cannot be divided among {sizes.tensor} "
                "tensor-parallel ranks"
            )
        self._stages = divide_layers(num_layers, stages)

    def _plan(
        self, rank: _Rank, place: Place, sizes: LayoutSizes, tensors: Mapping[str, TensorInfo]
    ) -> None:
        for index in range(sizes.virtual):
            stage = self._stages[index * sizes.pipeline + place.pipeline]
            for name, info in tensors.items():
                for own_name in self._names_on(stage, name):
                    try:
                        cut = full_layout(
                            name,
                            info.shape,
                            gated=self._description.config.gated,
                            num_shards=sizes.tensor,
                            shard=place.tensor,
                        )
                    except ValueError as error:
                        raise CheckpointError(str(error)) from error
                    if self._is_legacy and to_legacy(own_name) is None:
                        raise CheckpointError(f"a legacy model has no place for {name}")
                    number = rank.spool.add(cut.local_shape, info.dtype)
                    rank.slots.append(_Slot(own_name, name, index, cut, number))

    def _names_on(self, stage: StageLayers, name: str) -> list[str]:
        """What a stage calls a tensor; nothing when it does not have it."""
        layer = layer_of(name)
        if layer is not None:
            return [name] if stage.first <= layer < stage.last else []
        if not name.startswith("embedding."):
            return [name] if stage.has_output else []
        found = [name] if stage.has_embedding else []
        tied = not self._description.config.untie_embeddings_and_output_weights
        if name == WORD_EMBEDDING and tied and stage.has_output and not stage.has_embedding:
            found.append(OUTPUT_WEIGHT)
        return found

    def write(self, name: str, tensor: Tensor) -> None:
        """Cuts a tensor for the ranks that have it."""
        for rank, slot in self._slots[name]:
            copy_boxes(tensor, rank.view(slot), slot.layout, to_full=False)

    def destinations(self, name: str) -> tuple[str, ...]:
        """Keys in the files, where layers are numbered anew on every stage."""
        found: dict[str, None] = {}
        for stage in self._stages:
            for own in self._names_on(stage, name):
                local = renumbered(own, -stage.first)
                legacy = to_legacy(local) if self._is_legacy else None
                found[legacy or to_core(local, fused_norms=self._fused_norms)] = None
        return tuple(found)

    def finish(self) -> None:
        """Writes the files of the ranks, and the tracker."""
        sizes = self._sizes(self._description)
        for place, rank in self._ranks.items():
            folder = self._directory / self._name
            folder /= place.directory(pipeline_size=sizes.pipeline)
            folder.mkdir(parents=True)
            write_torch_file(folder / MODEL_FILE, self._contents(place, rank, sizes))
            rank.spool.close()
        iteration = self._description.iteration
        tracker = str(iteration) if iteration else directories.RELEASE
        write_file(self._directory / directories.TRACKER, tracker.encode())

    def _contents(self, place: Place, rank: _Rank, sizes: LayoutSizes) -> dict[str, Any]:
        stages = []
        for index in range(sizes.virtual):
            stage = self._stages[index * sizes.pipeline + place.pipeline]
            params = [
                RankParam(slot.name, rank.view(slot), is_shared=slot.name != slot.source)
                for slot in rank.slots
                if slot.stage == index
            ]
            stages.append(RankStage.of(stage.first, params))
        if self._is_legacy:
            models = legacy_states(stages)
        else:
            models = model_states(stages, fused_norms=self._fused_norms)
        return {
            "args": namespace(self._arguments(sizes)),
            "checkpoint_version": CHECKPOINT_VERSION,
            "iteration": self._description.iteration,
            **models,
        }

    def _arguments(self, sizes: LayoutSizes) -> dict[str, Any]:
        """The settings that Megatron-LM expects with a model."""
        virtual = sizes.virtual if sizes.virtual > 1 else None
        per_stage = self._stages[0].last - self._stages[0].first
        is_te = self._fused_norms and not self._is_legacy
        return arguments_of(self._description, "torch") | {
            "params_dtype": self._description.dtype,
            "tensor_model_parallel_size": sizes.tensor,
            "pipeline_model_parallel_size": sizes.pipeline,
            "transformer_pipeline_model_parallel_size": sizes.pipeline,
            "virtual_pipeline_model_parallel_size": virtual,
            "num_layers_per_virtual_pipeline_stage": None if virtual is None else per_stage,
            "world_size": sizes.tensor * sizes.pipeline,
            "use_legacy_models": self._is_legacy,
            "transformer_impl": "transformer_engine" if is_te else "local",
        }

    def _sizes(self, description: ModelDescription) -> LayoutSizes:
        return self._options.sizes(description.source_layout)

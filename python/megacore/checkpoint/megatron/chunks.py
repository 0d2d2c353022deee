"""The models of all ranks of a `torch` checkpoint: which layers each has, under canonical names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megacore.checkpoint.megatron.names import (
    OUTPUT_WEIGHT,
    WORD_EMBEDDING,
    flattened,
    from_core,
    from_legacy,
    is_ignored,
    is_legacy,
    layer_of,
    renumbered,
    stage_order,
)
from megacore.checkpoint.megatron.qkv_order import in_current_order
from megacore.checkpoint.megatron.rank_files import Place, RankFiles
from megacore.checkpoint.megatron.splits import is_gated, layout_of
from megacore.checkpoint.pieces import Part
from megacore.errors import CheckpointError

_QKV = (".linear_qkv.weight", ".linear_qkv.bias")


@dataclass(frozen=True)
class Chunk:
    """A stage of a model on one rank.

    Attributes:
        place: The rank.
        index: Which of its virtual stages.
        tensors: Canonical name -> tensor of the rank, in the order of the file.
        keys: Canonical name -> key in the file.
        unknown: Keys of tensors that a GPT does not have.
    """

    place: Place
    index: int
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class StoredModel:
    """A model that is divided over ranks.

    Attributes:
        chunks: Place -> its stages, in order.
        num_layers: Layers of all stages.
        is_legacy: The names in the files were those of a legacy model.
        tied: The output layer of the last stage, if it has one, is a copy of the word embedding.
        gated: The MLPs have gates.
        tensor_size: Tensor-parallel size.
    """

    chunks: Mapping[Place, tuple[Chunk, ...]]
    num_layers: int
    is_legacy: bool
    tied: bool
    gated: bool
    tensor_size: int

    def layout(self, chunk: Chunk, name: str) -> Any:
        """How a tensor of a chunk is cut from the full one (`ParamLayout`)."""
        return layout_of(
            name,
            tuple(chunk.tensors[name].shape),
            gated=self.gated,
            num_shards=self.tensor_size,
            shard=chunk.place.tensor,
        )

    def is_stored_elsewhere(self, chunk: Chunk, name: str) -> bool:
        """Whether another rank has the same: a copy, or a tensor that is not cut."""
        if name == OUTPUT_WEIGHT and self.tied:
            return True
        return chunk.place.tensor > 0 and not self.layout(chunk, name).is_sharded

    def all_chunks(self) -> Iterator[Chunk]:
        """Stages of all ranks, in the order of the model."""
        found = [chunk for chunks in self.chunks.values() for chunk in chunks]
        yield from sorted(found, key=lambda chunk: (chunk.index, chunk.place.pipeline, chunk.place))

    def parts(self) -> dict[str, list[Part]]:
        """Canonical name -> the parts that make up the full tensor."""
        found: dict[str, list[Part]] = {}
        for chunk in self.all_chunks():
            for name, tensor in chunk.tensors.items():
                if not self.is_stored_elsewhere(chunk, name):
                    found.setdefault(name, []).append(Part(self.layout(chunk, name), tensor))
        return found

    def origins(self) -> dict[str, tuple[str, ...]]:
        """Canonical name -> its keys, with the rank in front."""
        found: dict[str, tuple[str, ...]] = {}
        size = max(place.pipeline for place in self.chunks) + 1
        for chunk in self.all_chunks():
            for name, key in chunk.keys.items():
                if not self.is_stored_elsewhere(chunk, name):
                    where = chunk.place.directory(pipeline_size=size)
                    found[name] = (*found.get(name, ()), f"{where}: {key}")
        return found


def read_model(files: RankFiles, states: Mapping[Place, Mapping[str, Any]]) -> StoredModel:
    """Brings the models of all ranks together.

    Args:
        files: Their files.
        states: Place -> what its file holds.

    Raises:
        CheckpointError: The stages do not make up a model; the message names the file.
    """
    models = {place: _models(files, place, state) for place, state in states.items()}
    num_chunks = {place: len(own) for place, own in models.items()}
    if len(set(num_chunks.values())) > 1:
        raise CheckpointError(
            f"{files.model_file(Place(0)).parent.parent}: ranks have different numbers of virtual "
            f"stages: {sorted(set(num_chunks.values()))}"
        )
    legacy = any(is_legacy(model) for own in models.values() for model in own)
    chunks: dict[Place, list[Chunk]] = {place: [] for place in models}
    first = 0
    for index in range(next(iter(num_chunks.values()))):
        for pipeline in range(files.pipeline_size):
            counts = set()
            for place in sorted(p for p in models if p.pipeline == pipeline):
                state = states[place]
                chunk = _chunk(files, place, index, models[place][index], state, first)
                counts.add(_num_layers(files, chunk, first))
                chunks[place].append(chunk)
            if len(counts) > 1:
                raise CheckpointError(
                    f"{files.model_file(Place(0, pipeline))}: tensor-parallel ranks of this stage "
                    f"have different numbers of layers: {sorted(counts)}"
                )
            first += counts.pop()
    some = [chunk for own in chunks.values() for chunk in own]
    return StoredModel(
        chunks={place: tuple(own) for place, own in chunks.items()},
        num_layers=first,
        is_legacy=legacy,
        tied=_is_tied(some, next(iter(states.values()))),
        gated=any(is_gated(chunk.tensors) for chunk in some),
        tensor_size=files.tensor_size,
    )


def _models(files: RankFiles, place: Place, state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    keys = ["model"] if "model" in state else []
    while not keys or keys[-1] != "model":
        key = f"model{len(keys)}"
        if key not in state:
            break
        keys.append(key)
    found = [state[key] for key in keys]
    if not found or not all(isinstance(model, Mapping) for model in found):
        raise CheckpointError(f"{files.model_file(place)}: holds no model (key model or model0)")
    return found


def _chunk(
    files: RankFiles,
    place: Place,
    index: int,
    model: Mapping[str, Any],
    state: Mapping[str, Any],
    first_layer: int,
) -> Chunk:
    rename = from_legacy if is_legacy(model) else from_core
    tensors: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    unknown: list[str] = []
    for key, value in flattened(model).items():
        if is_ignored(key) or value is None:
            continue
        name = rename(key)
        if name is None or not isinstance(value, Tensor):
            unknown.append(key)
            continue
        name = renumbered(name, first_layer)
        if name in tensors:
            raise CheckpointError(f"{files.model_file(place)}: {keys[name]} and {key} are the same")
        tensors[name], keys[name] = _current(files, place, name, value, state), key
    if rename is from_legacy:
        # Nested states are not in the order of the parameters, which numbers optimizer states.
        tensors = {name: tensors[name] for name in sorted(tensors, key=stage_order)}
    return Chunk(place, index, tensors, keys, tuple(unknown))


def _current(
    files: RankFiles, place: Place, name: str, tensor: Tensor, state: Mapping[str, Any]
) -> Tensor:
    """The tensor in the order of rows of today."""
    if not name.endswith(_QKV):
        return tensor
    try:
        return current_qkv(tensor, state, files.tensor_size)
    except ValueError as error:
        raise CheckpointError(f"{files.model_file(place)}: {name}: {error}") from error


def current_qkv(tensor: Tensor, state: Mapping[str, Any], tensor_size: int) -> Tensor:
    """Rows of a query-key-value projection of a rank, in the order of today.

    Args:
        tensor: The rows.
        state: What the file of the rank holds.
        tensor_size: Tensor-parallel size.

    Raises:
        ValueError: The version or the number of heads is not usable.
    """
    version = state.get("checkpoint_version", 0)
    if not isinstance(version, int | float):
        raise ValueError(f"checkpoint_version {version!r} is not a number")
    if version >= 2:
        return tensor
    fields = getattr(state.get("args"), "fields", {})
    heads = fields.get("num_attention_heads")
    if not isinstance(heads, int) or heads < tensor_size:
        raise ValueError(
            f"checkpoint_version {version} orders rows by heads, but args.num_attention_heads is "
            f"{heads!r}"
        )
    return in_current_order(tensor, version, num_heads=heads // tensor_size)


def _num_layers(files: RankFiles, chunk: Chunk, first: int) -> int:
    layers = {layer - first for name in chunk.tensors if (layer := layer_of(name)) is not None}
    if layers != set(range(len(layers))):
        raise CheckpointError(
            f"{files.model_file(chunk.place)}: expected layers 0 to {len(layers) - 1}, found "
            f"{', '.join(map(str, sorted(layers)))[:200]}"
        )
    return len(layers)


def _is_tied(chunks: list[Chunk], state: Mapping[str, Any]) -> bool:
    """Whether an output layer is a copy of the word embedding."""
    for chunk in chunks:
        if OUTPUT_WEIGHT in chunk.tensors:
            if chunk.keys[OUTPUT_WEIGHT].startswith("word_embeddings_for_head"):
                return True
            # One stage with both has no use for a copy.
            if WORD_EMBEDDING in chunk.tensors:
                return False
    fields = getattr(state.get("args"), "fields", {})
    return not fields.get("untie_embeddings_and_output_weights", False)

"""Which tensors a `torch_dist` checkpoint holds, and where the chunks of each of them are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from megacore.checkpoint.chunks import Index, Region, fragment_regions, tiling_fault
from megacore.checkpoint.sharded_keys import layer_names, place_of
from megacore.checkpoint.torch_files import Record
from megacore.checkpoint.torch_files.dcp import DcpMetadata, StorageSpan, TensorEntry
from megacore.errors import CheckpointError


@dataclass(frozen=True)
class StoredChunk:
    """A rectangle of a tensor, contiguous in an item of a file.

    Attributes:
        key: Of the tensor in the checkpoint; may be that of all layers.
        offsets: First index of the item in that tensor.
        span: Where the item is.
        start: First element in the flattened item.
        region: Which rectangle of the tensor of this name it is.
    """

    key: str
    offsets: Index
    span: StorageSpan
    start: int
    region: Region


@dataclass
class StoredTensor:
    """A tensor of the checkpoint under the name that it has here.

    Attributes:
        name: Its name.
        dtype: Of its elements.
        shape: Its full shape.
        chunks: What it is made of.
    """

    name: str
    dtype: torch.dtype
    shape: Index
    chunks: list[StoredChunk] = field(default_factory=list)

    def fault(self) -> str | None:
        """What is missing or there twice, None when it is complete."""
        return tiling_fault(self.shape, (chunk.region for chunk in self.chunks))


def stored_tensors(metadata: DcpMetadata) -> dict[str, dict[str, StoredTensor]]:
    """Group -> name -> tensor, of everything that is a tensor.

    Raises:
        CheckpointError: The metadata contradicts itself.
    """
    spans = {(key, offsets): span for (key, offsets, _), span in metadata.storage.items()}
    groups: dict[str, dict[str, StoredTensor]] = {}
    for key, entry in metadata.entries.items():
        if not isinstance(entry, TensorEntry):
            continue
        group, name, is_stack = place_of(key)
        shape = _original_shape(metadata, key)
        grid = None if shape is None else entry.shape[:-1]
        shape = entry.shape if shape is None else shape
        if is_stack and not shape:
            raise CheckpointError(f"tensor {key}: expected one slice for each layer")
        names = list(layer_names(name, shape[0])) if is_stack else [name]
        own = [StoredTensor(n, entry.dtype, shape[is_stack:]) for n in names]
        for offsets, sizes in entry.chunks:
            span = spans.get((key, offsets))
            if span is None:
                raise CheckpointError(f"tensor {key}: no file holds its chunk at {list(offsets)}")
            for first, region in _rectangles(key, shape, grid, Region(offsets, sizes)):
                layers = _layers(region, first) if is_stack else [(0, first, region)]
                for layer, start, inner in layers:
                    own[layer].chunks.append(StoredChunk(key, offsets, span, start, inner))
        target = groups.setdefault(group, {})
        for tensor in own:
            if tensor.name in target:
                raise CheckpointError(f"tensor {tensor.name} of the {group} state is there twice")
            target[tensor.name] = tensor
    return groups


def _rectangles(
    key: str, shape: Index, grid: Index | None, chunk: Region
) -> Iterator[tuple[int, Region]]:
    if grid is None:
        yield 0, chunk
        return
    try:
        yield from fragment_regions(shape, grid, chunk)
    except ValueError as error:
        raise CheckpointError(f"tensor {key}: {error}") from error


def _layers(region: Region, first: int) -> Iterator[tuple[int, int, Region]]:
    """Layer, first element and rectangle of the layers in a rectangle of a stack."""
    inner = Region(region.offsets[1:], region.sizes[1:])
    for index in range(region.sizes[0]):
        yield region.offsets[0] + index, first + index * inner.numel, inner


def _original_shape(metadata: DcpMetadata, key: str) -> Index | None:
    """The shape of a tensor that Megatron-Core stored as flattened fragments."""
    known = metadata.extra.get("mcore_data")
    about = known.get(key) if isinstance(known, Mapping) else None
    if isinstance(about, Record):
        about = about.fields
    shape = about.get("nd_reformulated_orig_global_shape") if isinstance(about, Mapping) else None
    if shape is None:
        return None
    if not isinstance(shape, tuple | list) or not all(type(size) is int for size in shape):
        raise CheckpointError(f"tensor {key}: its original shape is {shape!r:.80}")
    return tuple(shape)

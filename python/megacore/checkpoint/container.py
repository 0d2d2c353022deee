"""Writes the files of a `torch_dist` checkpoint: PyTorch's, under Megatron-Core's names.

Every process writes its chunks, the first one what describes them. Who reads the directory later,
with which program and layout, does not matter.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megacore import _C
from megacore.checkpoint import layout
from megacore.checkpoint.chunks import Index, Region, tiling_fault
from megacore.checkpoint.common_file import common_of
from megacore.checkpoint.content import Chunk, Content, spread
from megacore.checkpoint.manifest import FileRecord, Manifest, SpanRecord, digest_of
from megacore.checkpoint.output import BlockOutput
from megacore.checkpoint.sharded_keys import single_key, stacked_key
from megacore.checkpoint.torch_files import TorchFileStream, write_torch_file
from megacore.checkpoint.torch_files.dcp import (
    DcpMetadata,
    ItemKey,
    StorageSpan,
    TensorEntry,
    write_dcp_metadata,
)
from megacore.durable import created, sync_directory, write_file
from megacore.errors import CheckpointError

# A process with at least this many bytes writes two files at a time.
_TWO_FILES_BYTES = 8 << 20
# Spans begin at multiples of this, so that tensors can be used where they lie in a mapped file.
_ALIGNMENT = 64

BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def structure(content: Content) -> list[list[Any]]:
    """Group, name, shape and dtype of the tensors a process has something of, as JSON values."""
    found = {
        (chunk.group, chunk.name): [chunk.group, chunk.name, list(chunk.shape), _name(chunk)]
        for chunk in content.chunks
    }
    return list(found.values())


def stacks_of(structures: Iterable[Iterable[Sequence[Any]]]) -> dict[str, int]:
    """The stacks of layers that are stored as one tensor: layers 0 ... n - 1, all alike.

    Args:
        structures: What `structure` gave on every process.

    Returns:
        Key -> number of layers.
    """
    layers: dict[str, set[int]] = {}
    kinds: dict[str, list[Any]] = {}
    for group, name, *kind in (row for rows in structures for row in rows):
        where = stacked_key(group, name)
        if where.layer is not None:
            layers.setdefault(where.key, set()).add(where.layer)
            kinds.setdefault(where.key, []).append(kind)
    return {
        key: len(found)
        for key, found in layers.items()
        if max(found) == len(found) - 1 and all(kind == kinds[key][0] for kind in kinds[key])
    }


def write_chunks(
    directory: Path, content: Content, stacks: Mapping[str, int], rank: int
) -> dict[str, list[list[Any]]]:
    """Writes the files of one process, flushed to the device.

    Args:
        directory: Where to.
        content: What the process has.
        stacks: What `stacks_of` gave, the same for all processes.
        rank: Of the process.

    Returns:
        What `finish` needs to know about the files, as JSON values.
    """
    count = 1 if content.num_bytes < _TWO_FILES_BYTES else 2
    piles: list[list[Chunk]] = [[] for _ in range(count)]
    sizes = [chunk.data.nbytes for chunk in content.chunks]
    for chunk, pile in zip(content.chunks, spread(sizes, count), strict=True):
        piles[pile].append(chunk)
    named = {layout.chunk_file_name(rank, n): pile for n, pile in enumerate(piles) if pile}

    def write(item: tuple[str, list[Chunk]]) -> tuple[str, list[list[Any]]]:
        return item[0], _write_file(directory / item[0], item[1], stacks)

    if len(named) < 2:
        return dict(map(write, named.items()))
    with ThreadPoolExecutor(len(named)) as pool:
        return dict(pool.map(write, named.items()))


def _write_file(path: Path, chunks: Sequence[Chunk], stacks: Mapping[str, int]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    start = 0
    with created(path) as descriptor, BlockOutput(descriptor) as output:
        for chunk in chunks:
            key, shape, offsets, data = _stored(chunk, stacks)
            stream = TorchFileStream(data)
            padding = bytes(-stream.num_bytes % _ALIGNMENT)
            for piece in itertools.chain(stream.chunks(), (padding,)):
                output.write(piece)
            record = SpanRecord(
                key=key,
                offsets=offsets,
                start=start,
                length=stream.num_bytes + len(padding),
                data=stream.start("data/0"),
                size=data.nbytes,
                crc=_C.crc32(padding, stream.checksum),
            )
            rows.append([record.values(), shape, list(data.shape), _name(chunk), stream.num_bytes])
            start += record.length
    return rows


def _stored(chunk: Chunk, stacks: Mapping[str, int]) -> tuple[str, Index, Index, torch.Tensor]:
    """Key, shape of that tensor, offsets in it, and the chunk with as many dimensions."""
    where = stacked_key(chunk.group, chunk.name)
    if where.layer is None or where.key not in stacks:
        key = single_key(chunk.group, chunk.name).key
        return key, chunk.shape, chunk.region.offsets, chunk.data
    shape = (stacks[where.key], *chunk.shape)
    return where.key, shape, (where.layer, *chunk.region.offsets), chunk.data[None]


@dataclass
class _Stored:
    """A tensor of the checkpoint while its chunks are collected."""

    shape: Index
    dtype: torch.dtype
    chunks: list[tuple[Index, Index]] = field(default_factory=list)


def finish(directory: Path, content: Content, files: Iterable[Mapping[str, Any]]) -> None:
    """Writes what makes the files of all processes a checkpoint; the checksums last.

    Args:
        directory: Where the files are.
        content: Of this process; its values are stored.
        files: What `write_chunks` gave on every process.

    Raises:
        CheckpointError: The chunks are not exactly all of their tensors.
    """
    records: dict[str, FileRecord] = {}
    stored: dict[str, _Stored] = {}
    storage: dict[ItemKey, StorageSpan] = {}
    for name, rows in ((name, rows) for own in files for name, rows in own.items()):
        spans = []
        for values, shape, sizes, dtype, length in rows:
            span = SpanRecord.of(values)
            spans.append(span)
            entry = stored.setdefault(span.key, _Stored(tuple(shape), getattr(torch, dtype)))
            storage[span.key, span.offsets, len(entry.chunks)] = StorageSpan(
                name, span.start, length
            )
            entry.chunks.append((span.offsets, tuple(sizes)))
        records[name] = FileRecord(sum(span.length for span in spans), None, tuple(spans))
    for key, entry in stored.items():
        fault = tiling_fault(entry.shape, (Region(*chunk) for chunk in entry.chunks))
        if fault is not None:
            raise CheckpointError(f"tensor {key} was not given as a whole: {fault}")
    entries = {
        key: TensorEntry(entry.shape, entry.dtype, tuple(entry.chunks))
        for key, entry in stored.items()
    }
    write_torch_file(directory / layout.COMMON, common_of(content.iteration, content.state))
    write_dcp_metadata(directory, DcpMetadata(entries, storage))
    write_file(directory / layout.METADATA, json.dumps(BACKENDS).encode())
    for name in (layout.COMMON, layout.DCP_METADATA, layout.METADATA):
        raw = (directory / name).read_bytes()
        records[name] = FileRecord(len(raw), digest_of(raw))
    write_file(directory / layout.CHECKSUMS, Manifest(content.iteration, records).encode())
    sync_directory(directory)


def _name(chunk: Chunk) -> str:
    """Name of the dtype of a chunk."""
    return str(chunk.data.dtype).removeprefix("torch.")

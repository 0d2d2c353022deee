"""A `torch` checkpoint, opened like one of any other format."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.chunks import part_regions, whole
from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.manifest import Manifest, read_manifest
from megacore.checkpoint.megatron.checkpoint import RNG, MegatronCheckpoint
from megacore.checkpoint.megatron.run_values import rng_parts
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.spans import Copy
from megacore.checkpoint.stored import StoredChunk, StoredTensor
from megacore.checkpoint.torch_files import read_torch_file
from megacore.checkpoint.torch_files.dcp import StorageSpan
from megacore.durable import CHUNK_BYTES
from megacore.errors import CheckpointError

# Key of an entry of rng_state: the processes that were in this state.
RANKS = "ranks"
_MAX_SHOWN = 5


@dataclass(frozen=True)
class MappedChunk(StoredChunk):
    """A rectangle of a tensor in the memory map of a file.

    Attributes:
        data: [region.sizes] the rectangle.
    """

    data: Tensor


class MappedReader:
    """Copies rectangles out of memory maps."""

    @torch.no_grad()
    def run(self, work: Iterable[Copy]) -> None:
        """Does all the copying."""
        for task in work:
            chunk = task.chunk
            assert isinstance(chunk, MappedChunk)
            task.target.copy_(task.region.of(chunk.data, chunk.region.offsets))


class RankCheckpoint(Checkpoint):
    """An open `torch` checkpoint, of Megatron-LM or of megacore.

    Args:
        path: Directory of an iteration, or of a release.
        share: (i, n): this process verifies one in n of the files, from the i-th one on. The n
            processes that open a checkpoint together verify all of it.

    Raises:
        CheckpointError: A file is missing, damaged or not that of a model; the message names it.
    """

    def __init__(self, path: Path, *, share: tuple[int, int] = (0, 1)) -> None:
        self.path = path
        manifest = read_manifest(path) if layout.is_complete(path) else None
        if manifest is not None:
            manifest.check_sizes(path)
            _verify(path, manifest, share)
        self._files = MegatronCheckpoint(path, verify=share if manifest is None else None)
        if self._files.is_own and manifest is None:
            raise CheckpointError(
                f"{path}: not a complete checkpoint: {layout.CHECKSUMS} is missing"
            )
        unknown = [key for chunk in self._files.model.all_chunks() for key in chunk.unknown]
        if unknown:
            raise CheckpointError(
                f"{path}: not the model of a GPT: it holds {', '.join(unknown[:_MAX_SHOWN])}"
                + (f" and {len(unknown) - _MAX_SHOWN} more" if len(unknown) > _MAX_SHOWN else "")
            )
        self.is_own = self._files.is_own
        self.iteration = self._files.iteration or layout.iteration_of(path.name)
        self.values: dict[str, Any] = dict(self._files.values)
        self._tensors: dict[str, dict[str, StoredTensor]] = {}
        self._reader = MappedReader()
        if RNG in self.groups:
            self._tensors[RNG], self.values[RNG] = self._random_states()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of tensors."""
        return self._files.groups

    def _group(self, group: str) -> dict[str, StoredTensor]:
        if group not in self._tensors and group in self.groups:
            parts = self._files.parts(group)
            self._tensors[group] = {name: _stored(name, own) for name, own in parts.items()}
        return super()._group(group)

    def _random_states(self) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
        """Random states by the names that the processes of a run give them, and their values."""
        found: dict[str, StoredTensor] = {}
        values: dict[str, Any] = {}
        for file, entry in self._files.rng_entries():
            tensors, own = rng_parts(entry, file)
            ranks = entry.get(RANKS)
            for rank in ranks if isinstance(ranks, list) else []:
                prefix = f"rank{rank:05d}"
                values[prefix] = own
                found |= {f"{prefix}.{n}": _plain(f"{prefix}.{n}", t) for n, t in tensors.items()}
            if ranks is None:
                values |= own
                found |= {name: _plain(name, tensor) for name, tensor in tensors.items()}
        return found, values


def _stored(name: str, parts: list[Part]) -> StoredTensor:
    first = parts[0]
    chunks: list[StoredChunk] = []
    for part in parts:
        flat = part.data.reshape(-1)
        for region, data in part_regions(part.layout, part.start, flat):
            nowhere = StorageSpan("", 0, 0)
            chunks.append(MappedChunk(name, region.offsets, nowhere, 0, region, data))
    return StoredTensor(name, first.data.dtype, first.layout.full_shape, chunks)


def _plain(name: str, tensor: Tensor) -> StoredTensor:
    region = whole(tensor.shape)
    chunk = MappedChunk(name, region.offsets, StorageSpan("", 0, 0), 0, region, tensor)
    return StoredTensor(name, tensor.dtype, tuple(tensor.shape), [chunk])


def _verify(path: Path, manifest: Manifest, share: tuple[int, int]) -> None:
    """Compares files with their checksums."""
    for number, (name, record) in enumerate(sorted(manifest.files.items())):
        if number % share[1] != share[0]:
            continue
        digest = xxhash.xxh3_64()
        with (
            (path / name).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
        ):
            for start in range(0, len(view), CHUNK_BYTES):
                digest.update(view[start : start + CHUNK_BYTES])
        if digest.hexdigest() != record.digest:
            raise CheckpointError(
                f"{path / name}: damaged: its checksum is not the one stored in {layout.CHECKSUMS}"
                + _where(path / name)
            )


def _where(file: Path) -> str:
    """What the file's own checksums say about where it is damaged."""
    try:
        read_torch_file(file, verify=True)
    except CheckpointError as error:
        return f" ({str(error).removeprefix(f'{file}: ')})"
    return ""

"""Copies rectangles of tensors out of the files of a checkpoint, verified once.

A chunk that goes to a contiguous tensor as a whole is read straight into it, and verified on the
way; anything else is copied out of a memory map of the file. Several threads work at once: reading,
checksums and large copies do not hold the interpreter.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megacore import _C
from megacore.checkpoint.chunks import Region
from megacore.checkpoint.layout import CHECKSUMS
from megacore.checkpoint.manifest import Manifest, SpanRecord
from megacore.checkpoint.stored import StoredChunk, StoredTensor
from megacore.checkpoint.torch_files.dcp import read_item
from megacore.checkpoint.torch_files.tensor_bytes import bytes_of
from megacore.durable import CHUNK_BYTES
from megacore.errors import CheckpointError

# More threads than this only wait for the memory or the device.
_MAX_THREADS = 8
# Files without checksums of ours: tensors that stay open, so that chunks of many layers are not
# looked for again and again.
_MAX_OPEN_ITEMS = 256
# Small chunks are many: mapping their file once is cheaper than opening it for each of them.
_DIRECT_BYTES = 1 << 16


@dataclass(frozen=True)
class Copy:
    """One rectangle to copy.

    Attributes:
        stored: The tensor, for messages and its dtype.
        chunk: The chunk that has it.
        region: Rectangle of the full tensor.
        target: [region.sizes] where it goes.
    """

    stored: StoredTensor
    chunk: StoredChunk
    region: Region
    target: Tensor


def copies(
    stored: StoredTensor, wanted: Iterable[tuple[Region, Tensor]], *, rows: int | None = None
) -> Iterator[Copy]:
    """What has to be copied to fill rectangles of a tensor.

    Args:
        stored: The tensor.
        wanted: Rectangle of the full tensor, and the tensor of that shape that it goes to.
        rows: Only these many first rows of the full tensor; None for all.
    """
    for region, target in wanted:
        for chunk in stored.chunks:
            common = region.overlap(chunk.region)
            if common is not None and rows is not None:
                head = max(0, min(common.sizes[0], rows - common.offsets[0]))
                common = Region(common.offsets, (head, *common.sizes[1:]))
            if not chunk.region.numel:
                # Nothing to copy, but the item that says so is verified.
                yield Copy(stored, chunk, chunk.region, target)
            elif common is not None and common.numel:
                yield Copy(stored, chunk, common, common.of(target, region.offsets))


class Reader(Protocol):
    """Copies rectangles of the tensors of one checkpoint."""

    def run(self, work: Iterable[Copy]) -> None:
        """Does all the copying.

        Raises:
            CheckpointError: A chunk is damaged; its target may hold anything.
        """


class SpanReader:
    """Reads from the files of one checkpoint.

    Args:
        directory: Of the checkpoint.
        manifest: Its checksums; None when it was written by another program: then the checksums
            that the files themselves have are used.
        threads: How many to read with; None for as many as are useful.
    """

    def __init__(
        self, directory: Path, manifest: Manifest | None, *, threads: int | None = None
    ) -> None:
        self._directory = directory
        self._records: dict[tuple[str, int], SpanRecord] | None = None
        if manifest is not None:
            self._records = {
                (name, span.start): span
                for name, record in manifest.files.items()
                for span in record.spans
            }
        self._threads = threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        self._verified: set[tuple[str, int]] = set()
        self._maps: dict[str, mmap.mmap] = {}
        self._items: dict[tuple[str, int], Tensor] = {}
        self._lock = threading.Lock()

    def run(self, work: Iterable[Copy]) -> None:
        """Does all the copying.

        Raises:
            CheckpointError: A chunk is damaged; its target may hold anything.
        """
        tasks = list(work)
        size = sum(task.region.numel * task.stored.dtype.itemsize for task in tasks)
        if self._threads == 1 or size < self._threads * CHUNK_BYTES:
            for task in tasks:
                self._copy(task)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(self._copy, task) for task in tasks]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @torch.no_grad()
    def _copy(self, task: Copy) -> None:
        span, dtype = task.chunk.span, task.stored.dtype
        if self._records is None:
            item = self._open_item(task)
        else:
            record = self._record(task)
            if self._read_into(task, record):
                return
            self._verify(task, record)
            if not task.region.numel:
                return
            item = torch.frombuffer(
                self._map(span.file),
                dtype=dtype,
                count=task.chunk.region.numel,
                offset=record.start + record.data + task.chunk.start * dtype.itemsize,
            )
        part = item.view(task.chunk.region.sizes)
        task.target.copy_(task.region.of(part, task.chunk.region.offsets))

    def _record(self, task: Copy) -> SpanRecord:
        """The checksum of a chunk; it belongs to this chunk and no other."""
        chunk, span = task.chunk, task.chunk.span
        record = (self._records or {}).get((span.file, span.offset))
        if record is None or (record.key, record.offsets) != (chunk.key, chunk.offsets):
            raise CheckpointError(
                f"{self._directory / CHECKSUMS}: has no checksum of the chunk at "
                f"{list(chunk.offsets)} of tensor {chunk.key}"
            )
        needed = (chunk.start + chunk.region.numel) * task.stored.dtype.itemsize
        if needed > record.size:
            raise self._damaged(task, "it is smaller than its shape")
        return record

    def _damaged(self, task: Copy, why: str) -> CheckpointError:
        span = task.chunk.span
        return CheckpointError(
            f"{self._directory / span.file}: tensor {task.stored.name} is damaged: {why} "
            f"(chunk at {list(task.chunk.offsets)}, bytes {span.offset} to "
            f"{span.offset + span.length})"
        )

    def _read_into(self, task: Copy, record: SpanRecord) -> bool:
        """Reads a chunk right to where it belongs; False when it does not go there as it is."""
        target, chunk = task.target, task.chunk
        size = target.nbytes
        # What is read is one whole span: the checksum is that of all of it.
        if not (
            _DIRECT_BYTES <= size == record.size
            and target.is_contiguous()
            and target.device.type == "cpu"
            and target.dtype == task.stored.dtype
            and task.region == chunk.region
            and chunk.start == 0
        ):
            return False
        flat = bytes_of(target)
        crc, at, behind = 0, record.start, record.length - record.data - size
        with self._open(chunk.span.file) as descriptor:
            for buffer in (memoryview(bytearray(record.data)), flat, memoryview(bytearray(behind))):
                for start in range(0, len(buffer), CHUNK_BYTES):
                    piece = buffer[start : start + CHUNK_BYTES]
                    self._read(task, descriptor, piece, at)
                    crc = _C.crc32(piece, crc)
                    at += len(piece)
        self._compare(task, record, crc)
        return True

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, task: Copy, descriptor: int, buffer: memoryview, at: int) -> None:
        while buffer:
            try:
                count = os.preadv(descriptor, [buffer], at)
            except OSError as error:
                raise self._damaged(task, f"it cannot be read: {error.strerror}") from error
            if count == 0:
                raise self._damaged(task, "the file is cut off")
            buffer, at = buffer[count:], at + count

    def _verify(self, task: Copy, record: SpanRecord) -> None:
        """Compares a whole span with its checksum, the first time that it is touched."""
        file = task.chunk.span.file
        if (file, record.start) not in self._verified:
            view = memoryview(self._map(file))[record.start : record.start + record.length]
            self._compare(task, record, _C.crc32(view) if len(view) == record.length else None)

    def _compare(self, task: Copy, record: SpanRecord, crc: int | None) -> None:
        if crc != record.crc:
            raise self._damaged(task, f"its checksum is not the one stored in {CHECKSUMS}")
        with self._lock:
            self._verified.add((task.chunk.span.file, record.start))

    def _map(self, name: str) -> mmap.mmap:
        """A private memory map of a file: what is written to it never reaches the file."""
        with self._lock:
            if name not in self._maps:
                with self._open(name) as descriptor:
                    try:
                        self._maps[name] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
                    except (OSError, ValueError) as error:
                        raise CheckpointError(f"{self._directory / name}: {error}") from error
            return self._maps[name]

    def _open_item(self, task: Copy) -> Tensor:
        """The chunk in an item of another program's file, flat."""
        chunk = task.chunk
        place = (chunk.span.file, chunk.span.offset)
        with self._lock:
            item = self._items.get(place)
        if item is None:
            item = read_item(self._directory, chunk.span, verify=True)
            if not isinstance(item, Tensor) or item.dtype != task.stored.dtype:
                what = item.dtype if isinstance(item, Tensor) else type(item).__name__
                raise self._damaged(task, f"expected {task.stored.dtype}, found {what}")
            with self._lock:
                if len(self._items) >= _MAX_OPEN_ITEMS:
                    self._items.clear()
                self._items[place] = item
        end = chunk.start + chunk.region.numel
        if end > item.numel():
            raise self._damaged(task, "it is smaller than its shape")
        return item.reshape(-1)[chunk.start : end]

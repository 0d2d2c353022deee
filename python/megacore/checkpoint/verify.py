"""Looks at every byte of a checkpoint, and says what is damaged and where.

Loading stops at the first fault that it meets; this finds all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megacore import _C
from megacore.checkpoint import layout
from megacore.checkpoint.manifest import FileRecord, Manifest, SpanRecord, read_manifest
from megacore.checkpoint.open import open_checkpoint
from megacore.checkpoint.stored import stored_tensors
from megacore.checkpoint.torch_files import read_torch_file
from megacore.checkpoint.torch_files.dcp import (
    DcpMetadata,
    StorageSpan,
    read_dcp_metadata,
    read_item,
)
from megacore.durable import CHUNK_BYTES
from megacore.errors import CheckpointError

# More threads than this only wait for the memory or the device.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Damage:
    """One fault.

    Attributes:
        file: Name of the file, or "" when it is about the directory.
        what: What is wrong, in words.
        tensor: Stored tensor that the bytes belong to; None when they belong to no tensor.
        offsets: First index of the chunk in that tensor.
        start: First byte of the part of the file that was compared.
        end: Its end.
    """

    file: str
    what: str
    tensor: str | None = None
    offsets: tuple[int, ...] = ()
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        text = f"{self.file}: " if self.file else ""
        if self.tensor is not None:
            text += f"tensor {self.tensor}, chunk at {list(self.offsets)}: "
        text += self.what
        return text + (f" (bytes {self.start} to {self.end})" if self.end else "")


@dataclass(frozen=True)
class Verification:
    """What looking at a checkpoint gave.

    Attributes:
        path: The checkpoint.
        num_files: Files that were read.
        num_bytes: Bytes that were compared.
        seconds: Time that it took.
        has_checksums: Whether there are checksums of everything; files of other programs have
            them inside, of each record of a file, and nothing says which files belong together.
        damages: What is wrong.
    """

    path: Path
    num_files: int
    num_bytes: int
    seconds: float
    has_checksums: bool
    damages: tuple[Damage, ...]


# Looks at a part of a file; the bytes it compared, and what is wrong with them.
_Task = Callable[[], tuple[int, list[Damage]]]


def verify(path: Path, *, threads: int | None = None) -> Verification:
    """Reads and compares everything.

    Args:
        path: Directory with the files of a checkpoint.
        threads: How many to read with; None for as many as are useful.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    started = time.perf_counter()
    damages: list[Damage] = []
    manifest = None
    if (path / layout.CHECKSUMS).exists():
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            damages.append(Damage(layout.CHECKSUMS, _plain(error, path)))
    files = list(manifest.files) if manifest else _files(path)
    if not files:
        raise CheckpointError(f"{path}: no checkpoint found there")
    tasks = list(_own_tasks(path, manifest) if manifest else _foreign_tasks(path, files))
    num_bytes = 0
    count = threads or min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(count) as pool:
        for compared, found in pool.map(lambda task: task(), tasks):
            num_bytes += compared
            damages += found
    if not damages:
        damages += _contradictions(path, manifest)
    if not damages:
        damages += _refusal(path)
    seconds = time.perf_counter() - started
    return Verification(path, len(files), num_bytes, seconds, manifest is not None, tuple(damages))


def _files(path: Path) -> list[str]:
    """Files of a checkpoint without checksums."""
    found = [path / layout.DCP_METADATA, path / layout.COMMON, *sorted(path.glob("*.distcp"))]
    if layout.has_rank_files(path):
        found = sorted(path.glob("mp_rank_*/**/*.pt"))
    return [str(file.relative_to(path)) for file in found if file.is_file()]


def _own_tasks(path: Path, manifest: Manifest) -> Iterator[_Task]:
    for name, record in manifest.files.items():
        file = path / name
        fault = _file_fault(file, name, record)
        if fault is not None:
            yield _told(fault)
        elif record.digest is not None:
            yield _digest_task(file, name, record)
        for span in record.spans:
            yield _span_task(file, name, span)
    listed = {*manifest.files, layout.CHECKSUMS}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and name not in listed:
            yield _told(Damage(name, "the file does not belong to the checkpoint"))


def _file_fault(file: Path, name: str, record: FileRecord) -> Damage | None:
    """What is wrong with a file as a whole."""
    try:
        found = os.stat(file).st_size
    except OSError as error:
        return Damage(name, f"the file cannot be read: {error.strerror}")
    if found == record.num_bytes:
        return None
    how = "cut off" if found < record.num_bytes else "too long"
    start, end = sorted((found, record.num_bytes))
    what = f"the file is {how}: expected {record.num_bytes} bytes, found {found}"
    return Damage(name, what, start=start, end=end)


def _told(damage: Damage) -> _Task:
    return lambda: (0, [damage])


def _digest_task(file: Path, name: str, record: FileRecord) -> _Task:
    def look() -> tuple[int, list[Damage]]:
        digest = xxhash.xxh3_64()
        try:
            for piece in _pieces(file, 0, record.num_bytes):
                digest.update(piece)
        except OSError as error:
            return 0, [Damage(name, f"the file cannot be read: {error.strerror}")]
        if digest.hexdigest() == record.digest:
            return record.num_bytes, []
        what = f"its checksum is not the one stored in {layout.CHECKSUMS}"
        return record.num_bytes, [Damage(name, what)]

    return look


def _span_task(file: Path, name: str, span: SpanRecord) -> _Task:
    def look() -> tuple[int, list[Damage]]:
        crc, left = 0, span.length
        what = f"its checksum is not the one stored in {layout.CHECKSUMS}"
        try:
            for piece in _pieces(file, span.start, span.length):
                crc = _C.crc32(piece, crc)
                left -= len(piece)
            if left:
                what = "the file ends before it"
        except OSError as error:
            left, what = span.length, f"it cannot be read: {error.strerror}"
        if not left and crc == span.crc:
            return span.length, []
        end = span.start + span.length
        return span.length - left, [Damage(name, what, span.key, span.offsets, span.start, end)]

    return look


def _pieces(file: Path, start: int, length: int) -> Iterator[memoryview]:
    """The bytes of a part of a file, up to its end."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while length:
            count = os.preadv(descriptor, [buffer[: min(length, len(buffer))]], start)
            if not count:
                return
            yield buffer[:count]
            start, length = start + count, length - count
    finally:
        os.close(descriptor)


def _foreign_tasks(path: Path, files: list[str]) -> Iterator[_Task]:
    metadata = None
    for name in files:
        if name == layout.DCP_METADATA:
            try:
                metadata = read_dcp_metadata(path)
            except CheckpointError as error:
                yield _told(Damage(name, _plain(error, path)))
        elif not name.endswith(".distcp"):
            yield _torch_file_task(path, name)
    if metadata is not None:
        yield from _item_tasks(path, metadata)


def _torch_file_task(path: Path, name: str) -> _Task:
    def look() -> tuple[int, list[Damage]]:
        try:
            read_torch_file(path / name, verify=True)
        except CheckpointError as error:
            return 0, [Damage(name, _plain(error, path))]
        return os.stat(path / name).st_size, []

    return look


def _item_tasks(path: Path, metadata: DcpMetadata) -> Iterator[_Task]:
    """A task for each item of a checkpoint of PyTorch or Megatron-Core."""

    def task(key: str, offsets: tuple[int, ...], span: StorageSpan) -> _Task:
        def look() -> tuple[int, list[Damage]]:
            end = span.offset + span.length
            try:
                read_item(path, span, verify=True)
            except CheckpointError as error:
                what = _plain(error, path)
                return 0, [Damage(span.file, what, key, offsets, span.offset, end)]
            return span.length, []

        return look

    for (key, offsets, _), span in metadata.storage.items():
        yield task(key, tuple(offsets or ()), span)


def _contradictions(path: Path, manifest: Manifest | None) -> Iterator[Damage]:
    """Files that are as they were written, but do not belong together."""
    if layout.has_rank_files(path) or not (path / layout.DCP_METADATA).exists():
        return
    try:
        metadata = read_dcp_metadata(path)
        groups = stored_tensors(metadata)
    except CheckpointError as error:
        yield Damage(layout.DCP_METADATA, _plain(error, path))
        return
    for tensors in groups.values():
        for tensor in tensors.values():
            fault = tensor.fault()
            if fault is not None:
                yield Damage(layout.DCP_METADATA, f"it is incomplete: {fault}", tensor.name)
    if manifest is None:
        return
    described = {
        (span.file, span.offset): (key, tuple(offsets or ()))
        for (key, offsets, _), span in metadata.storage.items()
    }
    listed = {
        (name, span.start): (span.key, span.offsets)
        for name, record in manifest.files.items()
        for span in record.spans
    }
    if described != listed:
        yield Damage(layout.CHECKSUMS, f"it is not about the chunks of {layout.DCP_METADATA}")


def _refusal(path: Path) -> Iterator[Damage]:
    """Why a checkpoint cannot be opened whose bytes are all as they should be."""
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        yield Damage("", _plain(error, path))


def _plain(error: CheckpointError, path: Path) -> str:
    """The message of an error, without the file that it begins with."""
    text = str(error)
    prefix = f"{path}{os.sep}"
    if text.startswith(prefix):
        text = text.removeprefix(prefix).partition(": ")[2] or text
    return text

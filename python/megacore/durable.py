"""File-system steps that survive a crash: write, flush to the device, publish by rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Large enough that system calls cost nothing, small enough to stay in the last-level cache between
# hashing a piece and writing it.
CHUNK_BYTES = 1 << 20


@contextmanager
def created(path: Path) -> Iterator[int]:
    """A new file open for writing, flushed to the device when the block ends well."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """Writes every byte of a flat byte view; a single call may write only part of it."""
    while data:
        data = data[os.write(descriptor, data) :]


def write_file(path: Path, data: bytes) -> None:
    """Creates a file with these bytes, on the device when the call returns."""
    with created(path) as descriptor:
        write_all(descriptor, memoryview(data))


def sync_directory(path: Path) -> None:
    """Flushes the entries of a directory: names made, renamed or removed in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Gives a file new content in one step: a reader sees all of the old or all of the new.

    For a file of which this process is the only writer: what a killed writer left behind is taken
    for its own.
    """
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    write_file(scratch, data)
    os.replace(scratch, path)
    sync_directory(path.parent)


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete and on the device, or not at all.

    Several processes may publish the same name at once: the last one wins, and none sees half.

    Args:
        path: The name; its directory must exist. What a killed writer leaves behind is called
            `.NAME.xxxxxxxx.tmp`.
    """
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            # mkstemp makes files for their owner alone.
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write to the file system of `directory`."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize

"""Writes the files of the ranks of a `torch` checkpoint, with their checksums beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from megacore.checkpoint import layout
from megacore.checkpoint.manifest import FileRecord, Manifest
from megacore.checkpoint.torch_files import TorchFileStream
from megacore.durable import created, sync_directory, write_all, write_file


class FileStreams:
    """The files that one process writes, encoded but not written yet.

    Args:
        files: Name inside the checkpoint -> what the file holds.

    Attributes:
        num_bytes: Bytes of all of them.

    Raises:
        CheckpointError: Something cannot be stored.
    """

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._streams = {name: TorchFileStream(value) for name, value in files.items()}
        self.num_bytes = sum(stream.num_bytes for stream in self._streams.values())

    def write(self, directory: Path) -> dict[str, Any]:
        """Writes all files, flushed to the device.

        Returns:
            What `finish_files` needs to know about them, as JSON values.
        """
        records = {}
        for name, stream in self._streams.items():
            path, digest = directory / name, xxhash.xxh3_64()
            path.parent.mkdir(exist_ok=True)
            with created(path) as descriptor:
                for chunk in stream.chunks():
                    digest.update(chunk)
                    write_all(descriptor, memoryview(chunk))
            sync_directory(path.parent)
            records[name] = FileRecord(stream.num_bytes, digest.hexdigest()).values()
        return records


def finish_files(directory: Path, iteration: int, files: Iterable[Mapping[str, Any]]) -> None:
    """Writes the checksums of all files, which makes them a checkpoint.

    Args:
        directory: Where the files are.
        iteration: Iterations completed.
        files: What `FileStreams.write` gave on every process.
    """
    records = {name: FileRecord.of(values) for own in files for name, values in own.items()}
    write_file(directory / layout.CHECKSUMS, Manifest(iteration, records).encode())
    sync_directory(directory)

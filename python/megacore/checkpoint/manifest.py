"""checksums.json: what every byte of a checkpoint should be.

The other files of a `torch_dist` checkpoint are those of PyTorch and Megatron-Core, which have no
place for it. It is written last, so a directory that has it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from megacore.checkpoint import layout
from megacore.checkpoint.layout import CHECKSUMS, FORMAT_KEY
from megacore.errors import CheckpointError

FORMAT_VERSION = 1
_SELF = "self_xxh3_64"


@dataclass(frozen=True)
class SpanRecord:
    """One chunk of a tensor in a file.

    Attributes:
        key: Stored tensor that it is a chunk of.
        offsets: Its first index in that tensor.
        start: First byte in the file.
        length: Bytes, with what the file format puts around the data.
        data: First byte of the data, counted from `start`.
        size: Bytes of the data.
        crc: CRC-32 of all `length` bytes.
    """

    key: str
    offsets: tuple[int, ...]
    start: int
    length: int
    data: int
    size: int
    crc: int

    def values(self) -> list[Any]:
        """As JSON can hold it."""
        numbers = (self.start, self.length, self.data, self.size, self.crc)
        return [self.key, list(self.offsets), *numbers]

    @classmethod
    def of(cls, values: Any) -> SpanRecord:
        """From what `values` gave.

        Raises:
            ValueError, TypeError: Something is missing or impossible.
        """
        key, offsets, start, length, data, size, crc = values
        if not all(type(n) is int for n in (start, length, data, size, crc, *offsets)):
            raise TypeError(f"{key}: positions, lengths and checksum must be integers")
        if min(start, data, size) < 0 or data + size > length:
            raise ValueError(f"{key}: impossible position")
        return cls(str(key), tuple(offsets), start, length, data, size, crc)


@dataclass(frozen=True)
class FileRecord:
    """What is known about one file.

    Attributes:
        num_bytes: Its size.
        digest: xxh3_64 of the whole file, hexadecimal; None for a file of chunks.
        spans: Its chunks, which follow each other without gaps.
    """

    num_bytes: int
    digest: str | None = None
    spans: tuple[SpanRecord, ...] = ()

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        if self.digest is not None:
            return {"bytes": self.num_bytes, "xxh3_64": self.digest}
        return {"bytes": self.num_bytes, "spans": [span.values() for span in self.spans]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FileRecord:
        """From what `values` gave.

        Raises:
            ValueError, TypeError, KeyError: Something is missing or impossible.
        """
        if "xxh3_64" in values:
            return cls(int(values["bytes"]), str(values["xxh3_64"]))
        spans = tuple(SpanRecord.of(span) for span in values["spans"])
        end = 0
        for span in spans:
            if span.start != end:
                raise ValueError(f"{span.key}: starts at byte {span.start}, not at {end}")
            end += span.length
        if end != values["bytes"]:
            raise ValueError(f"its chunks end at byte {end}, not at {values['bytes']}")
        return cls(end, None, spans)


@dataclass(frozen=True)
class Manifest:
    """Content of checksums.json.

    Attributes:
        iteration: Iteration that was saved.
        files: File name -> its size and checksums.
    """

    iteration: int
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The file's bytes, with a checksum of themselves."""
        body = {
            FORMAT_KEY: FORMAT_VERSION,
            "iteration": self.iteration,
            "files": {name: record.values() for name, record in self.files.items()},
        }
        return json.dumps({**body, _SELF: _self_digest(body)}, separators=(",", ":")).encode()

    def check_sizes(self, directory: Path) -> None:
        """Compares the sizes of all files; so a copy that was cut short is found at once.

        Raises:
            CheckpointError: A file is missing, cut off or too long.
        """
        for name, record in self.files.items():
            path = directory / name
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise CheckpointError(f"{path}: {error.strerror}") from error
            if found != record.num_bytes:
                raise CheckpointError(
                    f"{path}: expected {record.num_bytes} bytes, found {found}: the file is "
                    + ("cut off" if found < record.num_bytes else "too long")
                )

    def read_verified(self, directory: Path, name: str) -> bytes:
        """The content of a small file.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        path, record = directory / name, self.files.get(name)
        if record is None or record.digest is None:
            raise CheckpointError(f"{directory / CHECKSUMS}: has no checksum of {name}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        if digest_of(content) != record.digest:
            raise CheckpointError(
                f"{path}: damaged: its checksum is not the one stored in {CHECKSUMS}"
            )
        return content


def digest_of(content: bytes) -> str:
    """xxh3_64, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(content)


def _self_digest(body: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(directory: Path) -> Manifest:
    """Reads and verifies checksums.json.

    Raises:
        CheckpointError: The file is missing, damaged, or of a later format.
    """
    path = directory / CHECKSUMS
    try:
        body = json.loads(path.read_bytes())
        if not isinstance(body, dict) or FORMAT_KEY not in body:
            raise CheckpointError(f"{path}: damaged: not the checksums of a megacore checkpoint")
        digest = body.pop(_SELF, None)
        if digest != _self_digest(body):
            raise CheckpointError(f"{path}: damaged: its content does not match its own checksum")
        if body[FORMAT_KEY] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format {body[FORMAT_KEY]}, but this version reads {FORMAT_VERSION}: "
                "update megacore"
            )
        files = {name: FileRecord.of(values) for name, values in body["files"].items()}
        manifest = Manifest(iteration=int(body["iteration"]), files=files)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}") from error
    _check_name(directory, manifest)
    return manifest


def _check_name(directory: Path, manifest: Manifest) -> None:
    """An iteration that was copied over another one is whole, but not what it is taken for."""
    named = layout.iteration_of(directory.name)
    if named and named != manifest.iteration:
        raise CheckpointError(
            f"{directory / CHECKSUMS}: the files are those of iteration {manifest.iteration}, the "
            f"directory is that of iteration {named}"
        )

"""metadata.json: which files a checkpoint consists of, with sizes and checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megacore.checkpoint.layout import FORMAT_KEY, METADATA
from megacore.checkpoint.pieces import Piece
from megacore.checkpoint.tensor_file import FileRecord
from megacore.errors import CheckpointError

FORMAT_VERSION = 2
# Version 1 is version 2 without pieces.
_READABLE = (1, 2)
_SELF = "self_xxh3_64"


@dataclass(frozen=True)
class Metadata:
    """Content of metadata.json.

    Attributes:
        iteration: Iteration that was saved.
        files: File name -> size and checksums.
    """

    iteration: int
    files: Mapping[str, FileRecord]

    def encode(self) -> bytes:
        """The file's bytes, with a checksum of themselves."""
        body = {
            FORMAT_KEY: FORMAT_VERSION,
            "iteration": self.iteration,
            "files": {name: record_values(record) for name, record in self.files.items()},
        }
        return json.dumps({**body, _SELF: _self_digest(body)}, indent=1).encode() + b"\n"


def record_values(record: FileRecord) -> dict[str, Any]:
    """A record as JSON can hold it."""
    values: dict[str, Any] = {"bytes": record.num_bytes, "xxh3_64": record.digest}
    if record.tensors is not None:
        values["header_xxh3_64"] = record.header
        values["tensors_xxh3_64"] = dict(record.tensors)
    if record.pieces is not None:
        values["pieces"] = {key: piece.values() for key, piece in record.pieces.items()}
    return values


def record_of(values: Mapping[str, Any]) -> FileRecord:
    """From what `record_values` gave.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: Something is missing or impossible.
    """
    pieces = values.get("pieces")
    if pieces is not None:
        pieces = {key: Piece.of(piece) for key, piece in pieces.items()}
    return FileRecord(
        num_bytes=values["bytes"],
        digest=values["xxh3_64"],
        header=values.get("header_xxh3_64"),
        tensors=values.get("tensors_xxh3_64"),
        pieces=pieces,
    )


def _self_digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(canonical)


def read_metadata(directory: Path) -> Metadata:
    """Reads and verifies metadata.json.

    Raises:
        CheckpointError: The file is missing, damaged, or of a later format.
    """
    path = directory / METADATA
    try:
        body = json.loads(path.read_bytes())
        if not isinstance(body, dict) or FORMAT_KEY not in body:
            raise CheckpointError(f"{path}: not the metadata of a megacore checkpoint")
        digest = body.pop(_SELF, None)
        if digest != _self_digest(body):
            raise CheckpointError(f"{path}: damaged: its content does not match its own checksum")
        if body[FORMAT_KEY] not in _READABLE:
            raise CheckpointError(
                f"{path}: format {body[FORMAT_KEY]}, but this version reads up to "
                f"{FORMAT_VERSION}: update megacore"
            )
        files = {name: record_of(values) for name, values in body["files"].items()}
        return Metadata(iteration=body["iteration"], files=files)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}") from error

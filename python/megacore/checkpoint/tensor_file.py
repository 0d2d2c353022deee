"""One safetensors file: written in a single pass with checksums, read through a memory map.

The library's own writer wants every tensor as bytes and refuses views that share storage; a
checkpoint of flat buffers is nothing but such views, and copying it would double the memory.
Reading is the library's.

Source: the safetensors format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megacore.checkpoint.durable import CHUNK_BYTES, created, write_all
from megacore.checkpoint.pieces import Piece
from megacore.errors import CheckpointError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class FileRecord:
    """What the metadata says about one file.

    Attributes:
        num_bytes: Size of the file.
        digest: xxh3_64 of the whole file, hexadecimal.
        header: xxh3_64 of the bytes before the first tensor; None if it is not a tensor file.
        tensors: xxh3_64 of each tensor's bytes.
        pieces: Where tensors belong that are pieces of larger ones.
    """

    num_bytes: int
    digest: str
    header: str | None = None
    tensors: Mapping[str, str] | None = None
    pieces: Mapping[str, Piece] | None = None


def _in_file_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    # Wide elements first: every tensor then starts at a multiple of its element size.
    return sorted(tensors.items(), key=lambda item: -item[1].element_size())


def encode_header(tensors: Mapping[str, Tensor]) -> bytes:
    """Length and JSON header of a file that holds these tensors.

    Raises:
        ValueError: A tensor has a dtype that the format has no name for.
    """
    entries: dict[str, dict[str, object]] = {}
    offset = 0
    for name, tensor in _in_file_order(tensors):
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"tensor {name}: dtype {tensor.dtype} cannot be stored")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that `write_tensors` would make."""
    return len(encode_header(tensors)) + sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values()
    )


def byte_pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, in pieces; from a GPU one piece at a time is copied."""
    flat = tensor.detach().reshape(-1)
    step = CHUNK_BYTES // flat.element_size()
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].cpu().contiguous()
        yield piece.view(torch.uint8).numpy().data


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], pieces: Mapping[str, Piece] | None = None
) -> FileRecord:
    """Creates a safetensors file, flushed to the device, and returns its checksums.

    Args:
        path: File to create; it must not exist.
        tensors: Name -> tensor, any device; not modified and not copied as a whole.
        pieces: Name -> where the tensor belongs, for those that are pieces of larger ones.
    """
    header = encode_header(tensors)
    whole = xxhash.xxh3_64(header)
    digests: dict[str, str] = {}
    num_bytes = len(header)
    with created(path) as descriptor:
        write_all(descriptor, memoryview(header))
        for name, tensor in _in_file_order(tensors):
            own = xxhash.xxh3_64()
            for piece in byte_pieces(tensor):
                own.update(piece)
                whole.update(piece)
                write_all(descriptor, piece)
                num_bytes += len(piece)
            digests[name] = own.hexdigest()
    return FileRecord(
        num_bytes=num_bytes,
        digest=whole.hexdigest(),
        header=xxhash.xxh3_64_hexdigest(header),
        tensors=digests,
        pieces=pieces or None,
    )


class TensorFile:
    """An open file of tensors, backed by a private memory map; each is verified when it is read.

    Args:
        path: The file.
        record: What the metadata says about it.

    Raises:
        CheckpointError: The file cannot be read, or its size or header is not as recorded.
    """

    def __init__(self, path: Path, record: FileRecord) -> None:
        self._path = path
        check_size(path, record)
        check_header(path, record)
        self._digests = record.tensors or {}
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
            self.names: tuple[str, ...] = tuple(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype, as the format names it, and shape of a tensor."""
        piece = self._file.get_slice(name)
        return piece.get_dtype(), tuple(piece.get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            CheckpointError: It is damaged; the message names the file and the tensor.
        """
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path}: cannot be read: {error}") from error
        if tensor_digest(tensor) != self._digests.get(name):
            raise CheckpointError(
                f"{self._path}: tensor {name} is damaged: its checksum is not the one stored in "
                "metadata.json"
            )
        return tensor


def tensor_digest(tensor: Tensor) -> str:
    """xxh3_64 of the bytes of a tensor, hexadecimal."""
    digest = xxhash.xxh3_64()
    for piece in byte_pieces(tensor):
        digest.update(piece)
    return digest.hexdigest()


def check_size(path: Path, record: FileRecord) -> None:
    """Compares the size of a file with its record.

    Raises:
        CheckpointError: The file is missing, cut off or too long.
    """
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if found != record.num_bytes:
        raise CheckpointError(
            f"{path}: expected {record.num_bytes} bytes, found {found}: the file is "
            + ("cut off" if found < record.num_bytes else "too long")
        )


def check_header(path: Path, record: FileRecord) -> None:
    """Compares the header of a tensor file with its record, before anything parses it.

    Raises:
        CheckpointError: The header is damaged.
    """
    try:
        with path.open("rb") as file:
            length = file.read(8)
            num_bytes = int.from_bytes(length, "little")
            header = length + file.read(num_bytes) if num_bytes <= record.num_bytes else length
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if xxhash.xxh3_64_hexdigest(header) != record.header:
        raise CheckpointError(
            f"{path}: the header with names and shapes is damaged: its checksum is not the one "
            "stored in metadata.json"
        )

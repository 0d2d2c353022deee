"""Reading GGUF: the header with bounds checks, tensors from a private memory map.

Source: the GGUF specification (docs/gguf.md of ggml), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacore.checkpoint.convert.gguf_quants import BLOCK_FORMATS, dequantize
from megacore.errors import CheckpointError

MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_SPLIT_NAME = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.gguf)")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor of a file is.

    Attributes:
        shape: As PyTorch says it: the last dimension has neighbouring elements.
        kind: Number of its type.
        offset: First byte in the file.
        num_bytes: Size.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    num_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the tensor is read with: its own, or float32 when it is quantised."""
        return _PLAIN.get(self.kind, torch.float32)

    @property
    def kind_name(self) -> str:
        """As ggml calls the type."""
        names = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
        return names.get(self.kind) or BLOCK_FORMATS[self.kind].name


class GgufFile:
    """One open file.

    Attributes:
        metadata: Key -> value: numbers, strings, lists; numeric arrays are NumPy arrays.
        tensors: Name -> place.

    Raises:
        CheckpointError: The file is not GGUF, cut off, or of a kind that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        header = _Header(path, self._bytes.data)
        if header.take(4) != MAGIC:
            raise CheckpointError(f"{path}: not a GGUF file")
        self.version = header.number("<I")
        if self.version not in (2, 3):
            big = " (a file for big-endian machines)" if self.version & 0xFFFF == 0 else ""
            raise CheckpointError(
                f"{path}: GGUF version {self.version}{big}: only versions 2 and 3 can be read"
            )
        num_tensors, num_keys = header.number("<Q"), header.number("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = header.string("a key")
            if key in self.metadata:
                raise header.damaged(f"key {key} is there twice")
            self.metadata[key] = header.value(header.number("<I"), key)
        self.tensors: dict[str, GgufTensor] = {}
        found = [self._entry(header) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise header.damaged(f"general.alignment is {alignment!r}, not a multiple of 8")
        start = -(-header.position // alignment) * alignment
        for name, shape, kind, offset in found:
            self._place(header, name, shape, kind, start, offset)

    @staticmethod
    def _entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
        name = header.string("a tensor name")
        rank = header.number("<I")
        if rank > _MAX_DIMENSIONS:
            raise header.damaged(f"tensor {name} has {rank} dimensions")
        shape = tuple(header.number("<Q") for _ in range(rank))[::-1]
        return name, shape, header.number("<I"), header.number("<Q")

    def _place(
        self, header: _Header, name: str, shape: tuple[int, ...], kind: int, start: int, offset: int
    ) -> None:
        if name in self.tensors:
            raise header.damaged(f"tensor {name} is there twice")
        count = math.prod(shape)
        if kind in _PLAIN:
            num_bytes = count * _PLAIN[kind].itemsize
        elif kind in BLOCK_FORMATS:
            blocks = BLOCK_FORMATS[kind]
            if not shape or shape[-1] % blocks.elements:
                raise header.damaged(
                    f"tensor {name} {list(shape)}: rows of {blocks.name} are multiples of "
                    f"{blocks.elements}"
                )
            num_bytes = count // blocks.elements * blocks.num_bytes
        else:
            blocks_known = ", ".join(one.name for one in BLOCK_FORMATS.values())
            raise CheckpointError(
                f"{self.path}: tensor {name} has ggml type {kind}, which cannot be read; known are "
                f"F32, F16, BF16, F64, {blocks_known}"
            )
        place = start + offset
        if offset % 8 or place + num_bytes > len(self._bytes):
            raise header.damaged(
                f"tensor {name}: {num_bytes} bytes at {place} do not lie inside the "
                f"{len(self._bytes)} bytes of the file; it is cut off or damaged"
            )
        self.tensors[name] = GgufTensor(shape, kind, place, num_bytes)

    def read(self, name: str) -> Tensor:
        """A tensor: a view of the file, or float32 when it is quantised.

        Raises:
            CheckpointError: A quantised tensor decodes to something that is not a number.
        """
        entry = self.tensors[name]
        data = self._bytes[entry.offset : entry.offset + entry.num_bytes]
        if entry.kind in _PLAIN:
            if not entry.num_bytes:
                return torch.empty(entry.shape, dtype=entry.dtype)
            return torch.from_numpy(np.asarray(data)).view(entry.dtype).reshape(entry.shape)
        values = dequantize(BLOCK_FORMATS[entry.kind], np.asarray(data))
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.path}: tensor {name} is damaged: a {entry.kind_name} scale is not finite"
            )
        return torch.from_numpy(values).reshape(entry.shape)


class _Header:
    """A cursor that never leaves the file."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self._path = path
        self._data = data
        self.position = 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: damaged at byte {self.position}: {what}")

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise self.damaged(f"{count} bytes expected, {len(self._data) - self.position} left")
        piece = bytes(self._data[self.position : self.position + count])
        self.position += count
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("<Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8: {error}") from error

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string(f"the value of {key}")
        if kind != _ARRAY:
            raise self.damaged(f"{key} has an unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            size = struct.calcsize(_SCALARS[inner])
            if count > (len(self._data) - self.position) // size:
                raise self.damaged(f"{key} says it has {count} values, more than the file")
            return np.frombuffer(self.take(count * size), dtype=_SCALARS[inner])
        if inner != _STRING:
            raise self.damaged(f"{key} is an array of type {inner}")
        if count > (len(self._data) - self.position) // 8:
            raise self.damaged(f"{key} says it has {count} texts, more than the file")
        return [self.string(f"a value of {key}") for _ in range(count)]


class GgufFiles:
    """A model in one GGUF file, or in the several files that `gguf-split` made of it.

    Args:
        path: Any file of the model, or a directory that holds one model.

    Attributes:
        path: First file.
        metadata: Of the first file.
        tensors: Name -> (file, place), of all files.

    Raises:
        CheckpointError: A file is missing, damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        paths = files_of(path)
        self.path = paths[0]
        files = [GgufFile(one) for one in paths]
        self.metadata: Mapping[str, Any] = files[0].metadata
        self.version = files[0].version
        self.tensors: dict[str, tuple[GgufFile, GgufTensor]] = {}
        for file in files:
            for name, entry in file.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(f"{file.path}: tensor {name} is in another part too")
                self.tensors[name] = (file, entry)
        count = self.metadata.get("split.count", 1)
        if count not in (0, len(files)):
            raise CheckpointError(f"{path}: {count} parts expected, found {len(files)}")


def files_of(path: Path) -> list[Path]:
    """The files of the model that `path` names, in order.

    Raises:
        CheckpointError: There is none, or several models, or a part is missing.
    """
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        firsts = [
            one
            for one in found
            if not (match := _SPLIT_NAME.fullmatch(one.name)) or match[2] == "00001"
        ]
        if len(firsts) != 1:
            names = ", ".join(one.name for one in firsts) or "none"
            raise CheckpointError(f"{path}: one GGUF model expected, found {names}; name the file")
        path = firsts[0]
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    parts = [
        path.with_name(f"{match[1]}{i:05d}{match[3]}{match[4]}{match[5]}")
        for i in range(1, int(match[4]) + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(f"{path}: parts of the model are missing: {', '.join(missing)}")
    return parts

"""Storages of a torch file, and the tensors that view them: memory-mapped, bounds checked."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint.torch_files.inert import shown
from megacore.errors import CheckpointError, UnsafeFileError

# The names of torch's storage classes, which stand for a dtype.
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}

# A tensor that shows elements of its storage several times (an expanded one) may have this many.
MAX_REPEATED_ELEMENTS = 1 << 20


class MappedFile:
    """Part of a file in a private memory map: what is written to it never reaches the file.

    The file may be removed or replaced while it is mapped, but not shortened.

    Args:
        path: The file.
        offset: First byte of the part.
        length: Its bytes; None: to the end.

    Raises:
        CheckpointError: It cannot be read, or is shorter than that.
    """

    def __init__(self, path: Path, offset: int = 0, length: int | None = None) -> None:
        self.path = path
        try:
            # A pipe or a device would be waited for, or never end.
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError(f"{path}: not a file")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if length is None:
                    length = size - offset
                if offset < 0 or length < 0 or offset + length > size:
                    raise CheckpointError(
                        f"{path}: expected {max(length, 0)} bytes at {offset}, but the file has "
                        f"{size} bytes: it is cut off"
                    )
                if length == 0:
                    raise CheckpointError(f"{path}: there is nothing at position {offset}")
                start = offset - offset % mmap.ALLOCATIONGRANULARITY
                self._map = mmap.mmap(
                    file.fileno(), offset + length - start, access=mmap.ACCESS_COPY, offset=start
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self._skip = offset - start
        self.size = length

    def read(self, start: int, length: int) -> bytes:
        """A copy of bytes of the part; fewer at its end."""
        begin = self._skip + start
        return self._map[begin : min(begin + length, self._skip + self.size)]

    def view(self, start: int, length: int) -> memoryview:
        """Bytes of the part, not copied."""
        begin = self._skip + start
        return memoryview(self._map)[begin : begin + length]

    def whole(self) -> tuple[mmap.mmap, int]:
        """The map, and where the part begins in it; the part ends with the map."""
        return self._map, self._skip

    def bytes_tensor(self, start: int, length: int) -> Tensor:
        """Bytes of the part as uint8 [length], not copied; the map lives as long as the tensor."""
        if length == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(
            self._map, dtype=torch.uint8, count=length, offset=self._skip + start
        )


class StoredBytes:
    """The bytes of a storage, uint8 [bytes]; the same for all tensors that view it."""

    def __init__(self, data: Tensor) -> None:
        self._data = data
        self.size = data.numel()

    def elements(self, dtype: torch.dtype) -> Tensor:
        """The bytes as elements of a dtype; copied once if the file has them at an odd address."""
        if self._data.data_ptr() % dtype.itemsize:
            self._data = self._data.clone()
        return self._data[: self.size // dtype.itemsize * dtype.itemsize].view(dtype)


@dataclass(frozen=True, eq=False)
class Storage:
    """A stretch of bytes as a pickle refers to it.

    Attributes:
        stored: The bytes.
        dtype: Of the elements.
        first: Element where it begins.
        numel: Its elements.
    """

    stored: StoredBytes
    dtype: torch.dtype
    first: int
    numel: int


def _integers(what: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(value) is int for value in values):
        raise UnsafeFileError(f"{what} of a tensor must be integers, found {shown(values)}")
    return tuple(values)


def rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: torch.dtype | None
) -> Tensor:
    """A view of a storage.

    Args:
        storage: A `Storage`.
        offset: First element.
        shape: Sizes.
        strides: In elements.
        dtype: Of the elements; None: that of the storage.

    Raises:
        UnsafeFileError: The view leaves the storage, or an argument is not what it must be.
    """
    if not isinstance(storage, Storage):
        raise UnsafeFileError(f"a tensor needs a storage, found {type(storage).__name__}")
    if type(offset) is not int:
        raise UnsafeFileError("the offset of a tensor must be an integer")
    sizes, steps = _integers("sizes", shape), _integers("strides", strides)
    if len(sizes) != len(steps) or len(sizes) > 64:
        raise UnsafeFileError(f"a tensor has {len(sizes)} sizes and {len(steps)} strides")
    if offset < 0 or min(sizes, default=0) < 0 or min(steps, default=0) < 0:
        raise UnsafeFileError(
            f"a tensor with sizes {shown(sizes)}, strides {shown(steps)}, offset {offset}: negative"
        )
    wanted = dtype or storage.dtype
    elements = storage.numel * storage.dtype.itemsize // wanted.itemsize
    numel, last = 1, offset
    for size, step in zip(sizes, steps, strict=True):
        numel *= size
        last += (size - 1) * step
    if max((*sizes, *steps, offset, numel)) >= 1 << 62:
        raise UnsafeFileError(
            f"a tensor with sizes {shown(sizes)}, strides {shown(steps)}: too large"
        )
    if numel and (last >= elements or numel > max(elements, MAX_REPEATED_ELEMENTS)):
        raise UnsafeFileError(
            f"a tensor with sizes {shown(sizes)}, strides {shown(steps)}, offset {offset} does not "
            f"fit into its storage of {elements} elements"
        )
    if not numel:
        return torch.empty(sizes, dtype=wanted)
    first = storage.first * storage.dtype.itemsize
    if first % wanted.itemsize:
        raise UnsafeFileError(f"a tensor of {wanted} at byte {first} of its storage")
    flat = storage.stored.elements(wanted)
    return flat.as_strided(sizes, steps, first // wanted.itemsize + offset)

"""Memory in which one process leaves a copy of its state, and another one finds it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.chunks import Region
from megacore.checkpoint.content import Chunk, Content
from megacore.errors import CheckpointError
from megacore.system_memory import available_bytes


class SharedMemory:
    """Memory that has no name and ends with the processes that use it. It grows, and is reused.

    Args:
        descriptor: Of the memory; by default new memory. Processes that have a descriptor of the
            same memory see the same bytes.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("megacore-save", os.MFD_CLOEXEC)
        self.descriptor = descriptor
        self._tensor = torch.empty(0, dtype=torch.uint8)
        self._is_pinned = False

    def _reserve(self, num_bytes: int) -> None:
        """Makes the system find memory for this many bytes, or say at once that there is none.

        Raises:
            CheckpointError: There is not so much.
        """
        more = num_bytes - os.fstat(self.descriptor).st_size
        if more > available_bytes():
            raise CheckpointError(
                f"--async-save: no memory for a copy of {num_bytes} bytes: {available_bytes():.0f} "
                "are available; save without it, or spread the state over more processes"
            )
        try:
            if num_bytes:
                os.posix_fallocate(self.descriptor, 0, num_bytes)
        except OSError as error:
            raise CheckpointError(
                f"--async-save: no memory for a copy of {num_bytes} bytes: {error.strerror}"
            ) from error

    def view(self, num_bytes: int, *, pinned: bool = False) -> Tensor:
        """The first bytes.

        Args:
            num_bytes: How many; what was viewed before with fewer must not be used any more.
            pinned: Make copies from the GPU of this process fast.

        Returns:
            uint8 [num_bytes].

        Raises:
            CheckpointError: There is not so much memory.
        """
        if num_bytes > self._tensor.numel():
            self._release()
            if os.fstat(self.descriptor).st_size < num_bytes:
                self._reserve(num_bytes)
            # Populated: the pages are entered into the tables in one go, not one by one.
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            mapped = mmap.mmap(self.descriptor, num_bytes, flags=flags)
            self._tensor = torch.frombuffer(mapped, dtype=torch.uint8)
        if pinned and not self._is_pinned and num_bytes:
            _check_cuda(
                torch.cuda.cudart().cudaHostRegister(
                    self._tensor.data_ptr(), self._tensor.numel(), 0
                )
            )
            self._is_pinned = True
        return self._tensor[:num_bytes]

    def _release(self) -> None:
        if self._is_pinned:
            _check_cuda(torch.cuda.cudart().cudaHostUnregister(self._tensor.data_ptr()))
            self._is_pinned = False
        self._tensor = torch.empty(0, dtype=torch.uint8)

    def close(self) -> None:
        """Gives the memory back; views must not be used any more."""
        self._release()
        os.close(self.descriptor)


def _check_cuda(code: Any) -> None:
    if int(code) != 0:
        raise CheckpointError(f"--async-save: memory cannot be pinned for the GPU: {code}")


def describe(content: Content, memory: Tensor) -> dict[str, Any]:
    """A content whose tensors lie in shared memory, as JSON can hold it.

    Args:
        content: Made by `snapshot`.
        memory: The memory.
    """
    start = memory.data_ptr()
    return {
        "iteration": content.iteration,
        "state": content.state,
        "bytes": memory.numel(),
        "chunks": [
            [
                chunk.group,
                chunk.name,
                list(chunk.shape),
                list(chunk.region.offsets),
                list(chunk.region.sizes),
                str(chunk.data.dtype).removeprefix("torch."),
                chunk.data.data_ptr() - start if chunk.data.numel() else 0,
            ]
            for chunk in content.chunks
        ],
    }


def described(values: Mapping[str, Any], memory: Tensor) -> Content:
    """The content that `describe` was given, in the process that sees the same memory.

    Args:
        values: What `describe` gave.
        memory: uint8 [values["bytes"]].
    """
    return Content(
        int(values["iteration"]),
        str(values["state"]),
        tuple(_chunk(row, memory) for row in values["chunks"]),
    )


def _chunk(row: list[Any], memory: Tensor) -> Chunk:
    group, name, shape, offsets, sizes, dtype_name, position = row
    dtype: torch.dtype = getattr(torch, dtype_name)
    region = Region(tuple(offsets), tuple(sizes))
    num_bytes = region.numel * dtype.itemsize
    data = memory[position : position + num_bytes].view(dtype).view(region.sizes)
    return Chunk(group, name, tuple(shape), region, data)

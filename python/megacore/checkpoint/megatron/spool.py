"""Tensors that are collected in a file before they can be written where they belong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

_ALIGNMENT = 64


class Spool:
    """A file that is mapped into memory, with room for tensors that are not known yet.

    The system writes it back when it needs the memory, so what is held does not grow with the
    model.

    Args:
        path: The file; must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[tuple[int, tuple[int, ...], torch.dtype]] = []
        self._size = 0
        self._memory: Tensor | None = None

    def add(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Makes room for a tensor; returns its number."""
        self._starts.append((self._size, shape, dtype))
        num_bytes = math.prod(shape) * dtype.itemsize
        self._size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return len(self._starts) - 1

    def open(self) -> None:
        """Makes the file; nothing can be added any more.

        Raises:
            OSError: It cannot be made, or there is no space for it.
        """
        size = max(self._size, _ALIGNMENT)
        # All of its space is taken now: a write to a mapping without any would end the process.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
        self._memory = torch.from_file(str(self._path), shared=True, size=size, dtype=torch.uint8)

    def view(self, number: int) -> Tensor:
        """The memory of a tensor, in its shape; zero before something is copied into it."""
        assert self._memory is not None
        start, shape, dtype = self._starts[number]
        flat = self._memory[start : start + math.prod(shape) * dtype.itemsize]
        return flat.view(dtype).view(shape)

    def close(self) -> None:
        """Removes the file; views must not be used any more."""
        self._memory = None
        self._path.unlink()

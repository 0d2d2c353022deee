"""The memory of a tensor as bytes."""

from __future__ import annotations

import ctypes

from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied, to be read or written.

    `tensor.numpy()` would give them too, but from then on torch refuses to resize the storage, and
    parameters that are sharded over processes are resized again and again.

    Args:
        tensor: Contiguous, on the CPU; it must be kept for as long as the view is used.
    """
    if not tensor.nbytes:
        return memoryview(b"")
    memory = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(memory).cast("B")

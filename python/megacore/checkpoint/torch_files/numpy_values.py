"""NumPy arrays, scalars and dtypes in a pickle: of numbers and strings, never of objects."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from megacore.checkpoint.torch_files.inert import shown
from megacore.checkpoint.torch_files.limits import Budget
from megacore.checkpoint.torch_files.shell import Shell
from megacore.errors import UnsafeFileError

_DTYPE = re.compile(r"(b1|[iu][1248]|f[248]|f16|c8|c16|[SU][1-9][0-9]{0,5}|[mM]8)\Z")


def dtype_of(args: tuple) -> Shell:
    """dtype(text, align, copy), which its state gives a byte order.

    Raises:
        UnsafeFileError: It is no dtype of numbers or strings.
    """
    text = args[0] if args else None
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if type(text) is not str or not _DTYPE.match(text):
        raise UnsafeFileError(f"the numpy dtype {shown(text)}")
    dtype = np.dtype(text)

    def finish(state: Any) -> np.dtype:
        order = state[1] if type(state) is tuple and len(state) >= 2 else None
        if isinstance(order, bytes):
            order = order.decode("latin-1")
        if order not in ("<", ">", "|", "=") or any(state[index] for index in (2, 3, 4)):
            raise UnsafeFileError("a numpy dtype with fields")
        return dtype if order in ("|", "=") else np.dtype(f"{order}{text}")

    return Shell("numpy.dtype", finish, default=dtype)


def _as_dtype(value: Any) -> np.dtype:
    value = value.finished() if type(value) is Shell else value
    if not isinstance(value, np.dtype):
        raise UnsafeFileError(f"a numpy array needs a dtype, found {type(value).__name__}")
    return value


def _as_bytes(value: Any) -> bytes:
    if type(value) is str:
        value = value.encode()  # A string of Python 2 that happens to be valid UTF-8.
    if type(value) not in (bytes, bytearray):
        raise UnsafeFileError(f"a numpy array of {type(value).__name__} instead of bytes")
    return value


class ArrayState:
    """Makes an array of its state (version, shape, dtype, is_fortran, data)."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, state: Any) -> np.ndarray:
        """The array, in memory of its own and the byte order of this machine, as numpy does it.

        Raises:
            UnsafeFileError: The state is not that of an array.
        """
        if type(state) is not tuple or len(state) != 5:
            raise UnsafeFileError("an array needs version, shape, dtype, order and data")
        _, shape, dtype, is_fortran, data = state
        dtype, data = _as_dtype(dtype), _as_bytes(data)
        if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
            raise UnsafeFileError("the shape of an array must be a tuple of integers")
        if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
            raise UnsafeFileError(
                f"an array of shape {shown(shape)}, {dtype}, cannot have {len(data)} bytes"
            )
        self._budget.charge_copy(len(data))
        if not data:
            return np.empty(shape, dtype)
        flat = np.frombuffer(bytearray(data), dtype).astype(dtype.newbyteorder("="), copy=False)
        return flat.reshape(shape, order="F" if is_fortran else "C")


def scalar_of(args: tuple) -> np.generic:
    """numpy's scalar(dtype, bytes).

    Raises:
        UnsafeFileError: The bytes are not one such number.
    """
    if len(args) != 2:
        raise UnsafeFileError("a numpy scalar takes a dtype and bytes")
    dtype, data = _as_dtype(args[0]), _as_bytes(args[1])
    if dtype.itemsize != len(data) or not data:
        raise UnsafeFileError(f"a numpy scalar of {dtype} in {len(data)} bytes")
    return np.frombuffer(data, dtype)[0]

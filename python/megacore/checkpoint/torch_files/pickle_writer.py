"""Encodes plain values as a pickle of protocol 2, which torch.load and Python's pickle read."""

from __future__ import annotations

import argparse
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from megacore.checkpoint.torch_files.inert import Record, Symbol
from megacore.checkpoint.torch_files.opcodes import opcode
from megacore.errors import CheckpointError

# Puts a tensor's storage under a key and returns the key.
StoreTensor = Callable[[torch.Tensor], str]

_MAX_DEPTH = 100
_BATCH = 1000

_STORAGE_NAMES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex128: "ComplexDoubleStorage",
    torch.complex64: "ComplexFloatStorage",
}

_OP = {
    name: opcode(name)
    for name in (
        "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
        "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "EMPTY_LIST", "EMPTY_DICT", "APPENDS", "SETITEMS", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
        "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "BINPERSID",
    )
}  # fmt: skip


def encode_pickle(value: Any, store: StoreTensor | None = None) -> bytes:
    """A value as a pickle.

    What `read_torch_file` returns can be encoded, also `argparse.Namespace`. Containers are
    written wherever they occur; a tensor that occurs twice is one tensor.

    Args:
        value: The value.
        store: Takes the tensors; None where there can be none.

    Raises:
        CheckpointError: It holds something that the format has no safe form for.
    """
    encoder = _Encoder(store)
    encoder.encode(value, 0)
    return b"\x80\x02" + b"".join(encoder.parts) + _OP["STOP"]


class _Encoder:
    def __init__(self, store: StoreTensor | None) -> None:
        self.parts: list[bytes] = []
        self._store = store
        self._texts: dict[str, bytes] = {}
        self._names: dict[str, bytes] = {}
        # Keeps the tensors, so that their identities stay theirs.
        self._tensors: dict[int, tuple[torch.Tensor, bytes]] = {}
        self._num_memo = 0

    def encode(self, value: Any, depth: int) -> None:
        """Appends the opcodes of a value."""
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"a value nested deeper than {_MAX_DEPTH} cannot be stored")
        emit = _EMITTERS.get(type(value))
        if emit is not None:
            emit(self, value, depth)
        elif isinstance(value, torch.Tensor):
            self.tensor(value, depth)
        elif isinstance(value, np.generic):
            self.call("numpy.core.multiarray", "scalar", value.dtype, value.tobytes())
        elif isinstance(value, np.dtype):
            self.numpy_dtype(value, depth)
        else:
            raise CheckpointError(
                f"a {type(value).__module__}.{type(value).__qualname__} cannot be stored"
            )

    def add(self, *parts: bytes) -> None:
        """Appends bytes."""
        self.parts.extend(parts)

    def remember(self) -> bytes:
        """Stores the top of the stack; returns what gets it back."""
        number = self._num_memo
        self._num_memo += 1
        if number < 256:
            self.add(_OP["BINPUT"], bytes([number]))
            return _OP["BINGET"] + bytes([number])
        packed = struct.pack("<I", number)
        self.add(_OP["LONG_BINPUT"], packed)
        return _OP["LONG_BINGET"] + packed

    def integer(self, value: int, depth: int) -> None:
        """An integer of up to 255 bytes."""
        if 0 <= value < 1 << 8:
            self.add(_OP["BININT1"], bytes([value]))
        elif 0 <= value < 1 << 16:
            self.add(_OP["BININT2"], struct.pack("<H", value))
        elif -(1 << 31) <= value < 1 << 31:
            self.add(_OP["BININT"], struct.pack("<i", value))
        else:
            size = value.bit_length() // 8 + 1
            if size > 255:
                raise CheckpointError(f"an integer of {size} bytes cannot be stored")
            self.add(_OP["LONG1"], bytes([size]), value.to_bytes(size, "little", signed=True))

    def text(self, value: str, depth: int) -> None:
        """A string; later occurrences refer to the first."""
        known = self._texts.get(value)
        if known is not None:
            self.add(known)
            return
        raw = value.encode("utf-8", "surrogatepass")
        if len(raw) >= 1 << 32:
            raise CheckpointError(f"a string of {len(raw)} bytes cannot be stored")
        self.add(_OP["BINUNICODE"], struct.pack("<I", len(raw)), raw)
        self._texts[value] = self.remember()

    def name(self, kind: str) -> None:
        """A class, function or constant."""
        known = self._names.get(kind)
        if known is not None:
            self.add(known)
            return
        module, _, name = kind.rpartition(".")
        if not module or not kind.isprintable():
            raise CheckpointError(f"the name {kind!r} cannot be stored")
        self.add(_OP["GLOBAL"], f"{module}\n{name}\n".encode())
        self._names[kind] = self.remember()

    def call(self, module: str, name: str, *args: Any) -> None:
        """What a function makes of arguments."""
        self.name(f"{module}.{name}")
        self.items(args, 0)
        self.add(_OP["REDUCE"])

    def items(self, value: tuple, depth: int) -> None:
        """A tuple."""
        if not value:
            self.add(_OP["EMPTY_TUPLE"])
            return
        if len(value) > 3:
            self.add(_OP["MARK"])
        for item in value:
            self.encode(item, depth + 1)
        self.add(_OP[f"TUPLE{len(value)}" if len(value) <= 3 else "TUPLE"])

    def sequence(self, value: list, depth: int) -> None:
        """A list."""
        self.add(_OP["EMPTY_LIST"])
        for start in range(0, len(value), _BATCH):
            self.add(_OP["MARK"])
            for item in value[start : start + _BATCH]:
                self.encode(item, depth + 1)
            self.add(_OP["APPENDS"])

    def mapping(self, value: dict, depth: int) -> None:
        """A dictionary."""
        self.add(_OP["EMPTY_DICT"])
        self.set_items(value, depth)

    def ordered(self, value: OrderedDict, depth: int) -> None:
        """An OrderedDict."""
        self.call("collections", "OrderedDict")
        self.set_items(value, depth)

    def set_items(self, value: dict, depth: int) -> None:
        """Keys and values for the dictionary on the stack."""
        pairs = list(value.items())
        for start in range(0, len(pairs), _BATCH):
            self.add(_OP["MARK"])
            for key, item in pairs[start : start + _BATCH]:
                self.encode(key, depth + 1)
                self.encode(item, depth + 1)
            self.add(_OP["SETITEMS"])

    def raw(self, value: bytes, depth: int) -> None:
        """Bytes, which this protocol stores as text."""
        if value:
            self.call("_codecs", "encode", value.decode("latin-1"), "latin1")
        else:
            self.call("__builtin__", "bytes")

    def record(self, value: Record, depth: int) -> None:
        """An object: its class, what it is made of, its attributes or state."""
        self.name(value.kind)
        self.items(value.args, depth)
        self.add(_OP["REDUCE" if value.args else "NEWOBJ"])
        if value.state is not None and value.fields:
            raise CheckpointError(f"a {value.kind} with both attributes and state")
        if value.state is not None or value.fields:
            self.encode(value.fields if value.state is None else value.state, depth + 1)
            self.add(_OP["BUILD"])

    def tensor(self, value: torch.Tensor, depth: int) -> None:
        """A tensor, with its elements in order and nothing else of its storage."""
        known = self._tensors.get(id(value))
        if known is not None:
            self.add(known[1])
            return
        if self._store is None:
            raise CheckpointError("a tensor cannot be stored here")
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise CheckpointError(f"a tensor of {value.layout} on {value.device} cannot be stored")
        named = _STORAGE_NAMES.get(value.dtype)
        self.name(f"torch._utils._rebuild_tensor_v{2 if named else 3}")
        self.add(_OP["MARK"], _OP["MARK"])
        self.text("storage", 0)
        self.name(f"torch.{named}" if named else "torch.storage.UntypedStorage")
        self.text(self._store(value), 0)
        self.text("cpu", 0)
        self.integer(value.numel() if named else value.numel() * value.element_size(), 0)
        self.add(_OP["TUPLE"], _OP["BINPERSID"])
        self.integer(0, 0)
        self.items(tuple(value.shape), 0)
        self.items(_contiguous_strides(value.shape), 0)
        self.add(_OP["NEWFALSE"])
        self.call("collections", "OrderedDict")
        if not named:
            self.name(str(value.dtype))
        self.add(_OP["TUPLE"], _OP["REDUCE"])
        self._tensors[id(value)] = (value, self.remember())

    def array(self, value: np.ndarray, depth: int) -> None:
        """A NumPy array of numbers."""
        if value.dtype.hasobject or value.dtype.names:
            raise CheckpointError(f"a numpy array of {value.dtype} cannot be stored")
        kind = Symbol("numpy.ndarray")
        self.call("numpy.core.multiarray", "_reconstruct", kind, (0,), b"b")
        self.items((1, value.shape, value.dtype, False, value.tobytes()), depth)
        self.add(_OP["BUILD"])

    def numpy_dtype(self, value: np.dtype, depth: int) -> None:
        """A NumPy dtype."""
        order, text = value.str[0], value.str[1:]
        if value.hasobject or value.names or value.subdtype:
            raise CheckpointError(f"the numpy dtype {value} cannot be stored")
        size = value.itemsize if value.kind in "SU" else -1
        self.call("numpy", "dtype", text, False, True)
        state = (3, order, None, None, None, size, 4 if value.kind == "U" else -1, 0)
        self.items(state if value.kind in "SU" else (*state[:5], -1, -1, 0), depth)
        self.add(_OP["BUILD"])


def _contiguous_strides(shape: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


_EMITTERS: dict[type, Callable[[_Encoder, Any, int], None]] = {
    type(None): lambda out, value, depth: out.add(_OP["NONE"]),
    bool: lambda out, value, depth: out.add(_OP["NEWTRUE" if value else "NEWFALSE"]),
    int: _Encoder.integer,
    float: lambda out, value, depth: out.add(_OP["BINFLOAT"], struct.pack(">d", value)),
    complex: lambda out, value, depth: out.call("__builtin__", "complex", value.real, value.imag),
    str: _Encoder.text,
    bytes: _Encoder.raw,
    bytearray: lambda out, value, depth: out.call("__builtin__", "bytearray", bytes(value)),
    tuple: _Encoder.items,
    list: _Encoder.sequence,
    dict: _Encoder.mapping,
    OrderedDict: _Encoder.ordered,
    set: lambda out, value, depth: out.call("__builtin__", "set", list(value)),
    frozenset: lambda out, value, depth: out.call("__builtin__", "frozenset", list(value)),
    torch.Size: lambda out, value, depth: out.call("torch", "Size", tuple(value)),
    torch.dtype: lambda out, value, depth: out.name(str(value)),
    torch.device: lambda out, value, depth: out.call("torch", "device", str(value)),
    torch.layout: lambda out, value, depth: out.call(
        "torch.serialization", "_get_layout", str(value)
    ),
    torch.memory_format: lambda out, value, depth: out.name(str(value)),
    argparse.Namespace: lambda out, value, depth: out.record(
        Record("argparse.Namespace", fields=vars(value)), depth
    ),
    Record: _Encoder.record,
    Symbol: lambda out, value, depth: out.name(value.kind),
    np.ndarray: _Encoder.array,
}

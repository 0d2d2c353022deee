"""Writes GGUF files by the specification, independently of the reader under test."""

from __future__ import annotations

import struct

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = range(11)
F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 3, 8, 12, 14, 30


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content) -> bytes:
    if kind == STRING:
        return text(content)
    layout = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT64: "<Q"}[kind]
    return struct.pack(layout, content)


def entry(key: str, kind: int, content) -> bytes:
    """One pair of key and value; `kind` (ARRAY, inner) makes an array."""
    if isinstance(kind, tuple):
        inner = kind[1]
        head = struct.pack("<IIQ", ARRAY, inner, len(content))
        return text(key) + head + b"".join(value(inner, one) for one in content)
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def encode(array: np.ndarray, kind: int) -> bytes:
    """Bytes of an array in a plain type, or (quantised) of blocks that are bytes already."""
    if kind == F32:
        return array.astype("<f4").tobytes()
    if kind == F16:
        return array.astype("<f2").tobytes()
    if kind == BF16:
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    raise ValueError(kind)


def gguf(metadata, tensors, *, version: int = 3, alignment: int = 32) -> bytes:
    """A file.

    Args:
        metadata: (key, kind, content) triples.
        tensors: (name, shape as in PyTorch, kind, bytes) of each tensor.
        version: Of the format.
        alignment: Of the tensors; written as general.alignment unless it is 32.
    """
    if alignment != 32:
        metadata = [*metadata, ("general.alignment", UINT32, alignment)]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(entry(*triple) for triple in metadata)
    data = b""
    for name, shape, kind, content in tensors:
        data += b"\0" * (-len(data) % alignment)
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += content
    return head + b"\0" * (-len(head) % alignment) + data

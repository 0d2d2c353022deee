"""One safetensors file whose tensors are written one after the other, in any order.

The library's own writer wants all tensors of a file at once. Reading is the library's.

Source: the safetensors format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.convert.model_stream import TensorInfo
from megacore.durable import CHUNK_BYTES

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
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def num_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor."""
    return math.prod(info.shape) * info.dtype.itemsize


class SafetensorsFile:
    """A new file of the right size; the tensors come later.

    Args:
        path: File to create; it must not exist.
        tensors: Name -> shape and dtype.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]) -> None:
        # transformers insists on being told that the tensors are PyTorch's.
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        # Wide elements first: every tensor then starts at a multiple of its element size.
        for name, info in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            end = offset + num_bytes(info)
            header[name] = {
                "dtype": DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._offsets = {name: header[name]["data_offsets"][0] for name in tensors}
        self._file = path.open("xb", buffering=0)
        self._write(memoryview(len(text).to_bytes(8, "little") + text), 0)
        self._file.truncate(self._start + offset)

    def write(self, name: str, tensor: Tensor) -> None:
        """Puts a tensor of the announced shape and dtype in its place."""
        flat = tensor.detach().contiguous().view(-1)
        step = CHUNK_BYTES // flat.element_size()
        offset = self._start + self._offsets[name]
        for start in range(0, flat.numel(), step):
            piece = flat[start : start + step].view(torch.uint8).numpy().data
            self._write(piece, offset)
            offset += len(piece)

    def close(self) -> None:
        """Flushes the file to the device."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

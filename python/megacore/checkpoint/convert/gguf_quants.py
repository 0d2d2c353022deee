"""Block quantisations of ggml, decoded exactly.

A block is a run of 32 or 256 neighbouring elements of a row. Scales are float16; products of a
scale and a small integer are exact in float32, so the only rounding is that of ggml itself, the
one subtraction or addition of a minimum.

Source: the structs block_q4_0, ..., block_q6_K and dequantize_row_* of ggml (ggml-common.h,
ggml-quants.c), little-endian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

# Blocks that are decoded at a time: some megabytes of intermediate values.
_CHUNK_BLOCKS = 1 << 14


@dataclass(frozen=True)
class BlockFormat:
    """One quantisation.

    Attributes:
        name: As ggml calls it.
        elements: Elements of a block.
        num_bytes: Bytes of a block.
        decode: [n, num_bytes] uint8 -> [n, elements] float32.
    """

    name: str
    elements: int
    num_bytes: int
    decode: Callable[[Bytes], Floats]


def dequantize(block_format: BlockFormat, data: Bytes) -> Floats:
    """Values of a run of blocks.

    Args:
        block_format: How the blocks are made.
        data: Flat bytes, a whole number of blocks.

    Returns:
        Flat float32.
    """
    blocks = data.reshape(-1, block_format.num_bytes)
    values = np.empty((len(blocks), block_format.elements), dtype=np.float32)
    for first in range(0, len(blocks), _CHUNK_BLOCKS):
        chunk = slice(first, first + _CHUNK_BLOCKS)
        # Scales of damaged files may be infinite; whoever asked looks at the values.
        with np.errstate(invalid="ignore"):
            values[chunk] = block_format.decode(blocks[chunk])
    return values.reshape(-1)


def _half(data: Bytes) -> Floats:
    """Float16 values [n, 2 k] of bytes as float32 [n, k]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: Bytes, run: int) -> Codes:
    """Low halves of each run of bytes, then its high halves: [n, m] -> [n, 2 m]."""
    runs = data.reshape(len(data), -1, run)
    return np.stack([runs & 15, runs >> 4], axis=2).reshape(len(data), -1)


def _bits(data: Bytes) -> Codes:
    """Bits, lowest first: [n, m] -> [n, 8 m]."""
    return np.unpackbits(data, axis=1, bitorder="little")


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:], 16) + _half(blocks[:, 2:4])


def _q5_0(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks[:, :2]) * (values.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks[:, :2]) * values + _half(blocks[:, 2:4])


def _six_bit_scales(packed: Bytes) -> tuple[Codes, Codes]:
    """8 scales and 8 minima of 6 bits from 12 bytes: [n, 12] -> two of [n, 8].

    The first four of each are the low 6 bits of bytes 0-3 and 4-7; the other four have their low 4
    bits in the halves of bytes 8-11 and their high 2 bits on top of bytes 0-3 and 4-7.
    """
    low_scales, low_minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low_scales & 63, (rest & 15) | (low_scales >> 6) << 4], axis=1)
    minima = np.concatenate([low_minima & 63, (rest >> 4) | (low_minima >> 6) << 4], axis=1)
    return scales, minima


def _scaled_minus_minimum(blocks: Bytes, values: Codes) -> Floats:
    """d * scale * value - dmin * minimum for 8 sub-blocks of 32, as Q4_K and Q5_K have them."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    slopes = (_half(blocks[:, :2]) * scales)[:, :, None]
    offsets = (_half(blocks[:, 2:4]) * minima)[:, :, None]
    result: Floats = slopes * values.reshape(len(blocks), 8, 32) - offsets
    return result.reshape(len(blocks), 256)


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled_minus_minimum(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Bytes) -> Floats:
    # Bit j of high byte i belongs to element i of sub-block j.
    high = _bits(blocks[:, 16:48]).reshape(len(blocks), 32, 8).swapaxes(1, 2)
    values = _nibbles(blocks[:, 48:], 32) | high.reshape(len(blocks), 256) << 4
    return _scaled_minus_minimum(blocks, values)


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128], 64)
    pairs = blocks[:, 128:192].reshape(len(blocks), 2, 1, 32)
    high = pairs >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    values = (low | high.reshape(len(blocks), 256) << 4).astype(np.float32) - 32
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
    return (scales[:, :, None] * values.reshape(len(blocks), 16, 16)).reshape(len(blocks), 256)


# Number of the type in a file -> format.
BLOCK_FORMATS = {
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
}

"""Blocks of every quantisation, by hand and against the gguf package where it is installed."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from megacore.checkpoint.convert.gguf_quants import BLOCK_FORMATS, dequantize

BY_NAME = {one.name: one for one in BLOCK_FORMATS.values()}
D, M = 0.375, -1.25  # exact in float16


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def decoded(name: str, block: bytes) -> np.ndarray:
    blocks = BY_NAME[name]
    assert len(block) == blocks.num_bytes
    # A second, empty block behind it shows that blocks do not run into each other.
    values = dequantize(blocks, np.frombuffer(block + bytes(len(block)), dtype=np.uint8))
    assert len(values) == 2 * blocks.elements
    assert not values[blocks.elements :].any()
    return values[: blocks.elements]


def halves(codes: list[int]) -> bytes:
    """32 four-bit codes: element i low in byte i, element i + 16 high."""
    return bytes(codes[i] | codes[i + 16] << 4 for i in range(16))


CODES = [(7 * i + 3) % 16 for i in range(32)]


def test_q8_0() -> None:
    codes = [(37 * i) % 256 - 128 for i in range(32)]
    block = half(D) + struct.pack("<32b", *codes)
    assert decoded("Q8_0", block).tolist() == [D * code for code in codes]


def test_q4_0() -> None:
    assert decoded("Q4_0", half(D) + halves(CODES)).tolist() == [D * (c - 8) for c in CODES]


def test_q4_1() -> None:
    block = half(D) + half(M) + halves(CODES)
    assert decoded("Q4_1", block).tolist() == [D * c + M for c in CODES]


@pytest.mark.parametrize("name", ["Q5_0", "Q5_1"])
def test_q5(name) -> None:
    codes = [(11 * i + 5) % 32 for i in range(32)]
    high = sum((code >> 4) << i for i, code in enumerate(codes))
    low = halves([code & 15 for code in codes])
    head = half(D) + (half(M) if name == "Q5_1" else b"")
    expected = [D * c + M if name == "Q5_1" else D * (c - 16) for c in codes]
    assert decoded(name, head + struct.pack("<I", high) + low).tolist() == expected


def packed_scales(scales: list[int], minima: list[int]) -> bytes:
    """8 scales and 8 minima of 6 bits in 12 bytes, as ggml's get_scale_min_k4 unpacks them."""
    packed = [0] * 12
    for j in range(4):
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6
        packed[j + 4] = minima[j] | minima[j + 4] >> 4 << 6
        packed[j + 8] = scales[j + 4] & 15 | (minima[j + 4] & 15) << 4
    return bytes(packed)


SCALES = [1, 63, 17, 40, 62, 5, 33, 16]
MINIMA = [3, 0, 63, 21, 48, 15, 31, 60]


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_k_blocks_with_minima(name) -> None:
    # Sub-blocks 2 j and 2 j + 1 share 32 bytes: the first in the low halves, the second above.
    limit = 16 if name == "Q4_K" else 32
    codes = [[(13 * i + 7 * j + j * j) % limit for i in range(32)] for j in range(8)]
    low = b"".join(
        bytes(codes[2 * j][i] & 15 | (codes[2 * j + 1][i] & 15) << 4 for i in range(32))
        for j in range(4)
    )
    block = half(D) + half(0.5) + packed_scales(SCALES, MINIMA)
    if name == "Q5_K":
        block += bytes(sum((codes[j][i] >> 4) << j for j in range(8)) for i in range(32))
    expected = [D * SCALES[j] * codes[j][i] - 0.5 * MINIMA[j] for j in range(8) for i in range(32)]
    assert decoded(name, block + low).tolist() == expected


def test_q6_k() -> None:
    codes = [(29 * i + 11) % 64 for i in range(256)]
    scales = [(31 * i) % 256 - 128 for i in range(16)]
    low, high = [0] * 128, [0] * 64
    for part in range(2):  # 128 elements each, in four runs of 32
        for i in range(32):
            a, b, c, d = (codes[128 * part + 32 * run + i] for run in range(4))
            low[64 * part + i] = a & 15 | (c & 15) << 4
            low[64 * part + 32 + i] = b & 15 | (d & 15) << 4
            high[32 * part + i] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6
    block = bytes(low) + bytes(high) + struct.pack("<16b", *scales) + half(D)
    expected = [D * scales[i // 16] * (code - 32) for i, code in enumerate(codes)]
    assert decoded("Q6_K", block).tolist() == expected


@pytest.mark.parametrize("kind", sorted(BLOCK_FORMATS))
def test_random_blocks_equal_those_of_the_gguf_package(kind) -> None:
    gguf = pytest.importorskip("gguf")
    blocks = BLOCK_FORMATS[kind]
    generator = np.random.default_rng(kind)
    data = generator.integers(0, 256, (40000 // blocks.elements, blocks.num_bytes), dtype=np.uint8)
    assert gguf.GGMLQuantizationType(kind).name == blocks.name
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind))
    actual = dequantize(blocks, data.reshape(-1))
    assert np.array_equal(actual, expected.reshape(-1), equal_nan=True)

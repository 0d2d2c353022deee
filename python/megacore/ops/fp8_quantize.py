"""The 8-bit floating-point formats: conversion with scales, and products of what was converted.

A tensor has one scale, or every block of 1 x 128 or 128 x 128 of it a power of two. Products take
the codes, add up in float32 and multiply with the inverse scales. The kernels of the conversion are
`csrc/kernels/fp8_quantize.*`. On CUDA products of tensors with one scale are cuBLASLt's (by way of
torch._scaled_mm; no GPU has run that yet); elsewhere the codes are decoded, which float32 holds
exactly, as it does their products.
Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; DeepSeek-AI, "DeepSeek-V3
Technical Report", 2024, section 3.3.2 (blocks).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops import library

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = 128


class Operand(NamedTuple):
    """One side of a product, whose sums run along its columns.

    Attributes:
        codes: [R, K] float8_e4m3fn or float8_e5m2.
        inverse: Factors that undo the scale: [1], or one for each block, [ceil(R / rows),
            ceil(K / columns)].
        rows: Rows of a block; 0 where there is one scale.
        columns: Columns of a block.
    """

    codes: Tensor
    inverse: Tensor
    rows: int = 0
    columns: int = 0

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """[R, K] what the codes stand for, scale undone; in float32 and bfloat16 exact where the
        scales are powers of two."""
        values = self.codes.to(dtype)
        if not self.rows:
            return values * self.inverse.to(dtype)
        count, width = values.shape
        spread = self.inverse.to(dtype).repeat_interleave(self.rows, 0)[:count]
        return values * spread.repeat_interleave(self.columns, 1)[:, :width]


def largest(dtype: torch.dtype) -> float:
    """The largest finite value of a format."""
    return torch.finfo(dtype).max


def quantize(
    x: Tensor, scale: Tensor, amax: Tensor, dtype: torch.dtype, *, transpose: bool = False
) -> tuple[Tensor, Tensor]:
    """x * scale in an 8-bit format; what is too large becomes the largest finite value.

    Args:
        x: [M, K] float32, bfloat16 or float16.
        scale: [1] float32.
        amax: [1] float32; becomes the largest magnitude of x if that is larger. NaN does not count.
        dtype: E4M3 or E5M2.
        transpose: Give the transpose too.

    Returns:
        [M, K], and [K, M] or no elements.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    codes, transposed = torch.ops.megacore.fp8_quantize(
        x.contiguous(), scale, amax, dtype == E5M2, transpose
    )
    return codes, transposed


def quantize_blocks(x: Tensor, rows: int, dtype: torch.dtype) -> Operand:
    """x in an 8-bit format, each block of `rows` x 128 times the power of two that suits it.

    Args:
        x: [M, K] float32, bfloat16 or float16.
        rows: 1 or 128.
        dtype: E4M3 or E5M2.

    Raises:
        RuntimeError: A tensor or a size does not fit; the message names it.
    """
    codes, inverse = torch.ops.megacore.fp8_quantize_blocks(
        x.contiguous(), rows, BLOCK, dtype == E5M2
    )
    return Operand(codes, inverse, rows, BLOCK)


def product(a: Operand, b: Operand, dtype: torch.dtype) -> Tensor:
    """a b^T.

    Args:
        a: [M, K].
        b: [N, K]; with one scale if `a` has one.
        dtype: Dtype of the result.

    Returns:
        [M, N].
    """
    if a.rows or b.rows:
        # Powers of two: nothing is rounded before the sum.
        exact = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
        return (a.decoded(exact) @ b.decoded(exact).t()).to(dtype)
    if a.codes.device.type == "cuda":
        return torch._scaled_mm(
            a.codes,
            b.codes.t(),
            scale_a=a.inverse,
            scale_b=b.inverse,
            out_dtype=dtype,
        )
    total = a.codes.float() @ b.codes.float().t()
    return (total * (a.inverse * b.inverse)).to(dtype)


def _dtype(e5m2: bool) -> torch.dtype:
    return E5M2 if e5m2 else E4M3


def _encoded(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    limit = largest(dtype)
    return scaled.clamp(-limit, limit).to(dtype)


def _check(x: Tensor) -> None:
    if x.dim() != 2:
        raise RuntimeError(f"x: expected [M, K], found {list(x.shape)}")


def quantize_reference(
    x: Tensor, scale: Tensor, amax: Tensor, e5m2: bool, transpose: bool
) -> tuple[Tensor, Tensor]:
    """`quantize` in plain PyTorch, with the arguments of the op."""
    _check(x)
    dtype, wide = _dtype(e5m2), x.float()
    if x.numel():
        found = wide.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax()
        amax.copy_(torch.maximum(amax, found))
    codes = _encoded(wide * scale, dtype)
    transposed = codes.view(torch.uint8).t().contiguous().view(dtype)
    return codes, transposed if transpose else codes.new_empty(0, 0)


def quantize_blocks_reference(
    x: Tensor, rows: int, columns: int, e5m2: bool
) -> tuple[Tensor, Tensor]:
    """`quantize_blocks` in plain PyTorch, with the arguments of the op."""
    _check(x)
    dtype, wide = _dtype(e5m2), x.float()
    count, width = x.shape
    down, across = -(-count // rows), -(-width // columns)
    padded = F.pad(wide, (0, across * columns - width, 0, down * rows - count))
    blocks = padded.view(down, rows, across, columns)
    amax = blocks.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax((1, 3))
    limit = torch.tensor(largest(dtype)).view(torch.int32)
    bits = amax.view(torch.int32)
    exponent = (limit >> 23).to(x.device) - (bits >> 23)
    exponent -= ((bits & 0x7FFFFF) > (int(limit) & 0x7FFFFF)).int()
    exponent = exponent.clamp(-126, 126).masked_fill(amax == 0, 0)
    scaled = blocks * _power_of_two(exponent)[:, None, :, None]
    codes = _encoded(scaled.reshape(padded.shape)[:count, :width], dtype)
    return codes.contiguous(), _power_of_two(-exponent)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def _fake_quantize(
    x: Tensor, scale: Tensor, amax: Tensor, e5m2: bool, transpose: bool
) -> tuple[Tensor, Tensor]:
    dtype = _dtype(e5m2)
    shape = (x.shape[1], x.shape[0]) if transpose else (0, 0)
    return torch.empty_like(x, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _fake_quantize_blocks(x: Tensor, rows: int, columns: int, e5m2: bool) -> tuple[Tensor, Tensor]:
    inverse = x.new_empty((-(-x.shape[0] // rows), -(-x.shape[1] // columns)), dtype=torch.float32)
    return torch.empty_like(x, dtype=_dtype(e5m2)), inverse


library.define(
    "fp8_quantize(Tensor x, Tensor scale, Tensor(a!) amax, bool e5m2, bool transpose) "
    "-> (Tensor, Tensor)",
    reference=quantize_reference,
    fake=_fake_quantize,
)
library.define(
    "fp8_quantize_blocks(Tensor x, int rows, int columns, bool e5m2) -> (Tensor, Tensor)",
    reference=quantize_blocks_reference,
    fake=_fake_quantize_blocks,
)

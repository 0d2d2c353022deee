"""ops/fp8_quantize: bitwise against torch's own casts, blocks, products, faults."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megacore.ops import library
from megacore.ops.fp8_quantize import (
    BLOCK,
    E4M3,
    E5M2,
    Operand,
    largest,
    product,
    quantize,
    quantize_blocks,
    quantize_blocks_reference,
    quantize_reference,
)

FORMATS = [E4M3, E5M2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ONE = torch.ones(1)


def bits(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8)


def every_float16() -> Tensor:
    """All float16 numbers, as one row of float32; more than 8-bit formats can tell apart."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()


@pytest.mark.parametrize("dtype", FORMATS)
def test_codes_are_those_of_torch(dtype: torch.dtype) -> None:
    assert library.has_kernel("fp8_quantize", "cpu")
    x = every_float16()
    x = torch.cat([x, torch.nextafter(x, x + 1), torch.tensor([1e-30, -1e-40, 3e38, -3e38])])
    codes, _ = quantize(x[None], ONE, torch.zeros(1), dtype)
    finite = x.abs() <= largest(dtype)
    expected = x.to(dtype)
    assert torch.equal(bits(codes[0])[finite], bits(expected)[finite])
    limit = torch.full_like(x, largest(dtype)).copysign(x).to(dtype)
    beyond = x.abs() > largest(dtype)
    assert torch.equal(bits(codes[0])[beyond], bits(limit)[beyond])
    assert codes[0].float()[x.isnan()].isnan().all()
    assert torch.equal(bits(codes[0]) == 0x7F, bits(expected) == 0x7F)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 128), (65, 130), (3, 2050), (0, 5)])
def test_kernel_gives_the_bits_of_the_reference(
    shape: tuple[int, int], of: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(shape[1])
    x = (torch.randn(shape) * 50).to(of)
    scale, amax, other = torch.tensor([3.7]), torch.tensor([1.5]), torch.tensor([1.5])
    codes, transposed = quantize(x, scale, amax, dtype, transpose=True)
    wanted, wanted_t = quantize_reference(x, scale, other, dtype == E5M2, True)
    assert torch.equal(bits(codes), bits(wanted))
    assert torch.equal(bits(transposed), bits(wanted_t))
    assert torch.equal(amax, other)


def test_amax_collects_and_ignores_nan() -> None:
    amax = torch.zeros(1)
    for row, want in (([1.0, -3.0], 3.0), ([2.0, math.nan], 3.0), ([-math.inf, 0.0], math.inf)):
        quantize(torch.tensor([row]), ONE, amax, E4M3)
        assert amax.item() == want


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("rows", [1, BLOCK])
@pytest.mark.parametrize("shape", [(1, 1), (7, 128), (129, 257), (128, 300)])
def test_blocks_give_the_bits_of_the_reference(
    shape: tuple[int, int], rows: int, of: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(shape[0])
    x = (torch.randn(shape) * torch.logspace(-3, 3, shape[1])).to(of)
    x[:, 0] = 0.0
    found = quantize_blocks(x, rows, dtype)
    codes, inverse = quantize_blocks_reference(x, rows, BLOCK, dtype == E5M2)
    assert torch.equal(bits(found.codes), bits(codes))
    assert torch.equal(found.inverse, inverse)
    # The error is that of the mantissa: relative to the element, or to the smallest number that
    # the largest of the block leaves room for.
    step = 2.0**-4 if dtype == E4M3 else 2.0**-3
    error = (found.decoded(torch.float32) - x.float()).abs()
    floor = 2.0**-10 if dtype == E4M3 else 2.0**-17
    spread = inverse.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(BLOCK, 1)
    assert (error <= step * x.float().abs() + floor * spread[:, : shape[1]]).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 447.9, 448.0, 449.0, 3e38, math.inf])
def test_scales_of_blocks_use_the_format_and_no_more(value: float) -> None:
    found = quantize_blocks(torch.full((1, 5), value), 1, E4M3)
    inverse = float(found.inverse)
    assert math.frexp(inverse)[0] == 0.5  # a power of two
    assert found.codes.float().isfinite().all()
    if 2.0**-117 < value < 1e38:
        assert 224 < value / inverse <= 448


def operands(dtype: torch.dtype, rows: int) -> tuple[Operand, Operand]:
    torch.manual_seed(1)
    a, b = torch.randn(130, 300), torch.randn(140, 300)
    if rows:
        return quantize_blocks(a, 1, E4M3), quantize_blocks(b, rows, dtype)
    scale = torch.tensor([60.0])
    codes = [quantize(x, scale, torch.zeros(1), of)[0] for x, of in ((a, E4M3), (b, dtype))]
    return Operand(codes[0], 1 / scale), Operand(codes[1], 1 / scale)


@pytest.mark.parametrize("rows", [0, 1, BLOCK])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_product_is_exact_but_for_the_sum(out: torch.dtype, dtype: torch.dtype, rows: int) -> None:
    a, b = operands(dtype, rows)
    exact = a.decoded(torch.float64) @ b.decoded(torch.float64).t()
    terms = a.decoded(torch.float64).abs() @ b.decoded(torch.float64).abs().t()
    found = product(a, b, out)
    assert found.dtype == out
    rounding = torch.finfo(out).eps / 2 * exact.abs()
    assert ((found.double() - exact).abs() <= 40 * 2.0**-24 * terms + rounding * 1.01).all()


def test_faults_name_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match=r"x: expected \[M, K\]"):
        quantize(torch.zeros(3), ONE, torch.zeros(1), E4M3)
    with pytest.raises(RuntimeError, match=r"expected shape \[1\], found scale"):
        quantize(torch.zeros(3, 2), torch.ones(2), torch.zeros(1), E4M3)
    with pytest.raises(RuntimeError, match="blocks: expected 1 x 128 or 128 x 128, found 2 x 128"):
        quantize_blocks(torch.zeros(3, 2), 2, E4M3)


def test_schema_and_shapes() -> None:
    x = torch.randn(3, 5)
    torch.library.opcheck(
        torch.ops.megacore.fp8_quantize_blocks,
        (x, 1, BLOCK, False),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(
        torch.ops.megacore.fp8_quantize,
        (x, ONE, torch.zeros(1), True, True),
        test_utils=("test_schema", "test_faketensor"),
    )

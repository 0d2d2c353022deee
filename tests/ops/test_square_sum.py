"""ops/square_sum: against float64; threads, values that are not finite, faults."""

from __future__ import annotations

import math

import pytest
import torch

from megacore.ops import library
from megacore.ops.square_sum import square_sum, square_sum_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 33, 2047, 2048, 2049, 100_003])
def test_against_float64(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    exact = float(x.double().square().sum())
    found = square_sum(x)
    assert found.dtype == torch.float64
    assert found.shape == ()
    # A lane of the kernel adds up at most 512 squares in float32, then 16 lanes.
    unit = 2.0**-24 if dtype != torch.float64 else 2.0**-50
    assert abs(float(found) - exact) <= 64 * unit * exact
    assert abs(float(square_sum_reference(x)) - exact) <= 64 * unit * exact


def test_threads_change_nothing() -> None:
    assert library.has_kernel("square_sum", "cpu")
    x = torch.randn(300_007)
    before = torch.get_num_threads()
    try:
        seen = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.add(float(square_sum(x)))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1023, 2048, 4096])
def test_what_is_not_finite_shows(bad: float, at: int) -> None:
    x = torch.zeros(4097)
    x[at] = bad
    assert not math.isfinite(float(square_sum(x)))


def test_faults_name_the_tensor() -> None:
    with pytest.raises(RuntimeError, match=r"x: expected \[N\], found x: float32 \[2, 3\]"):
        square_sum(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="x: int64"):
        square_sum(torch.zeros(3, dtype=torch.int64))


def test_schema_and_shapes() -> None:
    torch.library.opcheck(torch.ops.megacore.square_sum, (torch.randn(33),))

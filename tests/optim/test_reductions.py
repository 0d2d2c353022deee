"""Norms and counts over flat buffers."""

from __future__ import annotations

import math

import pytest
import torch

from megacore.optim.reductions import clip_coefficient, count_zeros, square_sum

ROW = 2048  # elements that the kernel adds up in float32


@pytest.mark.parametrize("size", [0, 1, 7, ROW, ROW + 1, 3 * ROW - 1, 4 * ROW * ROW + 5 * ROW + 13])
def test_norm_is_as_close_to_float64_as_torch(size: int) -> None:
    flat = torch.randn(size, generator=torch.Generator().manual_seed(size))
    exact = float(torch.linalg.vector_norm(flat.double()))
    torch_error = abs(float(torch.linalg.vector_norm(flat)) - exact)
    bound = 2 * max(torch_error, torch.finfo(torch.float32).eps * exact)
    assert abs(math.sqrt(square_sum([flat])) - exact) <= bound


def test_norm_does_not_depend_on_the_number_of_threads() -> None:
    flat = torch.randn(17 * ROW * 40 + 1001, generator=torch.Generator().manual_seed(5))
    before = torch.get_num_threads()
    try:
        seen = set()
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            seen.add(math.sqrt(square_sum([flat])))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, ROW, 5 * ROW + 2])
def test_one_bad_value_anywhere_shows(bad: float, where: int) -> None:
    flat = torch.zeros(5 * ROW + 3)
    assert square_sum([flat]) == 0.0
    flat[where] = bad
    assert not math.isfinite(square_sum([torch.ones(3), flat]))


def test_sum_over_buffers_of_several_dtypes_and_of_tiny_values() -> None:
    assert square_sum([torch.tensor([3.0]), torch.tensor([4.0]).double()]) == 25.0
    assert float(square_sum([torch.full((4,), 1e-18)])) == pytest.approx(4e-36)


def test_count_zeros_counts_both_signs() -> None:
    assert int(count_zeros(torch.tensor([0.0, -0.0, 1e-45, 1.0, math.nan]))) == 2


def test_clip_coefficient() -> None:
    assert clip_coefficient(0.5, 1.0) == 1.0
    assert clip_coefficient(4.0, 1.0) == 1.0 / (4.0 + 1e-6)
    assert clip_coefficient(4.0, 0.0) == 1.0

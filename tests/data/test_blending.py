from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_indices import blend, exhaustive_blend

from megacore import _C
from megacore.errors import DataError


def check(weights, size):
    datasets, samples = _C.data.build_blend(np.array(weights, dtype=np.float64), size)
    assert (datasets.dtype, samples.dtype) == (np.int16, np.int64)
    expected = blend([float(w) for w in weights], size)
    np.testing.assert_array_equal(datasets, expected[0])
    np.testing.assert_array_equal(samples, expected[1])


def test_published_vectors():
    datasets, samples = _C.data.build_blend(np.array([0.5, 0.3, 0.2]), 10)
    assert datasets.tolist() == [0, 1, 2, 0, 1, 0, 2, 0, 1, 0]
    assert samples.tolist() == [0, 0, 0, 1, 1, 2, 1, 3, 2, 4]
    datasets, samples = _C.data.build_exhaustive_blend(np.array([4, 1, 3]))
    assert datasets.tolist() == [0, 2, 1, 0, 2, 0, 2, 0]
    assert samples.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40),
    size=st.integers(0, 400),
    normal=st.booleans(),
)
def test_any_weights(weights, size, normal):
    check(np.array(weights) / sum(weights) if normal else np.array(weights), size)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 4), min_size=1, max_size=140), size=st.integers(0, 400))
def test_weights_with_many_ties(weights, size):
    check(np.array(weights) / sum(weights), size)


@pytest.mark.parametrize("members", [1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 100, 127, 128, 129, 300])
def test_numbers_of_datasets_around_the_vector_sizes(members):
    weights = np.random.default_rng(members).random(members) ** 3
    check(weights / weights.sum(), 1500)


def test_weights_that_leave_the_fixed_point_range():
    check([1.0, 1.0, 1.0, 0.5], 2000)  # errors grow without bound
    check([3.5, 0.25], 300)
    check([0.0, 1.0], 50)


def test_late_places_are_rounded_like_the_loop():
    """Rounding of weight * place grows with the place; start the count far out."""
    weights = np.random.default_rng(3).random(20)
    weights /= weights.sum()
    size = 300_000
    datasets, samples = _C.data.build_blend(weights, size)
    counts = np.zeros(20)
    for i in range(size):
        errors = weights * max(float(i), 1.0) - counts
        chosen = int(np.argmax(errors))
        if chosen != datasets[i] or counts[chosen] != samples[i]:
            pytest.fail(f"place {i}: expected dataset {chosen}, found {datasets[i]}")
        counts[chosen] += 1


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(lambda s: sum(s) > 0))
def test_exhaustive(sizes):
    datasets, samples = _C.data.build_exhaustive_blend(np.array(sizes, dtype=np.int64))
    expected = exhaustive_blend(sizes)
    np.testing.assert_array_equal(datasets, expected[0])
    np.testing.assert_array_equal(samples, expected[1])


@pytest.mark.parametrize("weights", [[], [0.5, -0.5], [float("nan")], [float("inf"), 1.0]])
def test_unusable_weights(weights):
    with pytest.raises(DataError, match="blend: expected"):
        _C.data.build_blend(np.array(weights, dtype=np.float64), 10)


def test_too_many_datasets():
    with pytest.raises(DataError, match="1 to 32766 datasets, found 32767"):
        _C.data.build_blend(np.full(32767, 1 / 32767), 1)
    datasets, _ = _C.data.build_blend(np.full(32766, 1 / 32766), 32766)
    assert datasets[-1] == 32765

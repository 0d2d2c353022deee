from __future__ import annotations

import numpy as np
import pytest

from megacore import _C

SIZES = (0, 1, 2, 3, 4, 5, 31, 32, 33, 1000, 4095, 4097, 65536, 65537, (1 << 20) + 7)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("size", SIZES)
def test_shuffle_equals_numpy_and_leaves_the_same_state(dtype, size):
    ours, theirs = _C.data.RandomState(1234), np.random.RandomState(1234)
    actual, expected = np.arange(size, dtype=dtype), np.arange(size, dtype=dtype)
    for _ in range(2):
        ours.shuffle(actual)
        theirs.shuffle(expected)
    np.testing.assert_array_equal(actual, expected)
    assert ours.random_sample() == theirs.random_sample()


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_seeds(seed):
    ours, theirs = _C.data.RandomState(seed), np.random.RandomState(seed)
    words = theirs.randint(0, 2**32, size=2000, dtype=np.uint32)
    assert [ours.next32() for _ in range(2000)] == words.tolist()


def test_64_bit_draws_take_the_high_half_first():
    ours, theirs = _C.data.RandomState(7), np.random.RandomState(7)
    words = theirs.randint(0, 2**64, size=100, dtype=np.uint64)
    assert [ours.next64() for _ in range(100)] == words.tolist()


@pytest.mark.parametrize("largest", [2**32, 2**32 + 1, 2**33 + 12345, 10**12, 2**62 + 3, 2**63 - 2])
def test_wide_intervals_equal_numpy(largest):
    ours, theirs = _C.data.RandomState(99), np.random.RandomState(99)
    expected = theirs.randint(0, largest + 1, size=500, dtype=np.int64)
    assert [ours.interval(largest) for _ in range(500)] == expected.tolist()


def test_interval_of_zero_draws_nothing():
    ours, fresh = _C.data.RandomState(3), _C.data.RandomState(3)
    assert ours.interval(0) == 0
    assert ours.next32() == fresh.next32()


def test_shuffle_refuses_other_arrays():
    random = _C.data.RandomState(1)
    with pytest.raises(ValueError, match="one-dimensional"):
        random.shuffle(np.zeros((2, 2), dtype=np.int32))
    with pytest.raises(ValueError, match="float64"):
        random.shuffle(np.zeros(3))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacore.data.blend import parse_blend
from megacore.data.split import split_matrix, split_ranges
from megacore.errors import DataError


def test_the_usual_split():
    assert split_ranges("969,30,1", 1000) == [(0, 969), (969, 999), (999, 1000)]
    assert split_ranges("969, 30, 1", 1000) == split_ranges("969/30/1", 1000)


def test_bounds_are_added_up_in_order_and_begin_with_the_integer():
    matrix = split_matrix("969, 30, 1")
    shares = [969 / 1000, 30 / 1000, 1 / 1000]
    assert matrix == [
        (0, shares[0]),
        (shares[0], shares[0] + shares[1]),
        (shares[0] + shares[1], shares[0] + shares[1] + shares[2]),
    ]
    assert isinstance(matrix[0][0], int)


def test_missing_and_empty_splits():
    assert split_matrix("1") == [(0, 1.0), None, None]
    assert split_matrix("0,5,5") == [None, (0.0, 0.5), (0.5, 1.0)]
    assert split_ranges("100,0,0", 7) == [(0, 7), (0, 0), (0, 0)]


def test_halves_go_to_the_even_neighbour():
    assert split_ranges("1,1,0", 5)[0] == (0, 2)
    assert split_ranges("1,1,0", 7)[0] == (0, 4)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3), st.integers(0, 10**9))
def test_splits_do_not_overlap(shares, count):
    if sum(shares) == 0:
        return
    end = 0
    for first, last in split_ranges(",".join(map(str, shares)), count):
        if (first, last) != (0, 0):
            assert end <= first <= last <= count
            end = last


@pytest.mark.parametrize("split", ["", "abc", "0,0,0", "1,2,3,4", "1.2.3"])
def test_unreadable_splits(split):
    with pytest.raises(DataError, match="--split"):
        split_matrix(split)


def test_prefixes_with_and_without_weights():
    def parse(*words):
        blend = parse_blend(words, flag="--data-path")
        return list(blend.prefixes), blend.weights and list(blend.weights)

    assert parse("a") == (["a"], None)
    assert parse("a ", " b", "c") == (["a", "b", "c"], None)
    assert parse("a", "b") == (["a", "b"], None)
    assert parse("3", "a") == (["a"], [1.0])
    assert parse("1", "a", "3", "b") == (["a", "b"], [0.25, 0.75])
    assert parse("1e-1", "a", ".1", "b")[1] == [0.5, 0.5]


@pytest.mark.parametrize(
    "words", [[], ["1", "a", "b", "c"], ["a", "b", "2", "c"], ["-1", "a"], ["nan", "a"], ["0", "a"]]
)
def test_unusable_blends(words):
    with pytest.raises(DataError, match="--train-data-path: expected"):
        parse_blend(words, flag="--train-data-path")


def test_members_are_asked_for_half_a_percent_more():
    blend = parse_blend(["0.3", "a", "0.7", "b"], flag="--data-path")
    assert blend.samples_of_members(1000) == [302, 704]
    assert parse_blend(["a", "b"], flag="--data-path").samples_of_members(10) == [None, None]

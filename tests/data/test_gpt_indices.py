from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_indices import build_indices, count_epochs

from megacore import _C
from megacore.errors import DataError

LENGTHS = np.array([5, 0, 7, 3, 9, 2, 6, 4, 8, 1], dtype=np.int32)


def build(lengths, first, last, *, length, samples, seed=1234, drop_last=True, threads=1):
    plan = _C.data.plan_gpt_indices(
        "test",
        first_document=first,
        last_document=last,
        tokens_per_epoch=_C.data.count_tokens(lengths, first, last),
        sequence_length=length,
        num_samples=samples,
        drop_last=drop_last,
    )
    return plan, _C.data.build_gpt_indices(plan, lengths, seed=seed, num_threads=threads)


def test_published_vector_with_separate_final_epoch():
    plan, (documents, samples, shuffle) = build(LENGTHS, 0, 8, length=4, samples=20)
    assert (plan.num_epochs, plan.separate_final_epoch, plan.samples_before_final) == (3, True, 17)
    assert " ".join(map(str, documents)) == "5 3 0 4 6 2 2 7 1 1 0 4 5 6 3 7 5 1 3 4 0 7 6 2"
    assert samples[:12].tolist() == [
        [0, 0], [1, 2], [2, 3], [3, 2], [3, 6], [4, 1],
        [4, 5], [5, 3], [6, 0], [6, 4], [7, 1], [10, 1],
    ]  # fmt: skip
    assert samples.shape == (27, 2)
    assert " ".join(map(str, shuffle)) == (
        "7 10 4 1 12 8 3 15 14 13 5 11 0 2 6 9 16 17 22 25 23 24 18 21 20 19"
    )
    assert (documents.dtype, samples.dtype, shuffle.dtype) == (np.int32, np.int64, np.uint32)


def test_published_vector_without_separate_final_epoch():
    plan, (documents, _, shuffle) = build(LENGTHS, 0, 8, length=4, samples=25)
    assert (plan.num_epochs, plan.separate_final_epoch) == (3, False)
    assert " ".join(map(str, documents)) == "7 0 2 3 1 2 5 4 0 0 5 5 2 6 4 6 3 1 1 7 4 6 3 7"
    assert " ".join(map(str, shuffle)) == (
        "22 21 4 8 10 19 17 14 1 13 20 24 25 23 9 0 11 7 3 6 2 5 12 16 18 15"
    )


@settings(max_examples=400, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    cut=st.tuples(st.integers(0, 29), st.integers(0, 29)),
    length=st.integers(1, 50),
    samples=st.none() | st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
    drop_last=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_equal_to_the_transcription(lengths, cut, length, samples, seed, drop_last, threads):
    array = np.array(lengths, dtype=np.int32)
    first, last = min(cut), max(cut) + 1
    assume(last <= len(lengths) and array[first:last].sum() > 0)
    wanted = build_indices(
        array, first, last,
        sequence_length=length, num_samples=samples, seed=seed, drop_last=drop_last,
    )  # fmt: skip
    if len(wanted.shuffle_index) == 0:
        with pytest.raises(DataError, match="less than one sample"):
            build(array, first, last, length=length, samples=samples, drop_last=drop_last)
        return
    plan, (documents, rows, shuffle) = build(
        array, first, last,
        length=length, samples=samples, seed=seed, drop_last=drop_last, threads=threads,
    )  # fmt: skip
    assert plan.num_epochs == wanted.num_epochs
    assert plan.separate_final_epoch == wanted.separate
    np.testing.assert_array_equal(documents, wanted.document_index)
    np.testing.assert_array_equal(rows, wanted.sample_index)
    np.testing.assert_array_equal(shuffle, wanted.shuffle_index)


@pytest.mark.parametrize("longest", [900, 70_000])
def test_many_documents_use_the_narrow_table_or_the_file(longest):
    lengths = np.random.default_rng(5).integers(0, longest, 70_001).astype(np.int32)
    wanted = build_indices(lengths, 1, 70_000, sequence_length=257, num_samples=None, seed=8)
    _, arrays = build(lengths, 1, 70_000, length=257, samples=None, seed=8, threads=2)
    np.testing.assert_array_equal(arrays[0], wanted.document_index)
    np.testing.assert_array_equal(arrays[1], wanted.sample_index)
    np.testing.assert_array_equal(arrays[2], wanted.shuffle_index)


def test_lengths_may_lie_at_any_address():
    raw = b"\0\0" + LENGTHS.tobytes()
    shifted = np.frombuffer(raw, dtype=np.int32, offset=2)
    _, expected = build(LENGTHS, 0, 8, length=4, samples=20)
    _, actual = build(shifted, 0, 8, length=4, samples=20)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.integers(1, 2**50),
    length=st.integers(1, 2**20),
    samples=st.integers(0, 2**40),
)
def test_epochs_are_counted_exactly_for_any_size(tokens, length, samples):
    needed = samples * length + 1
    expected = max(1, -(-needed // tokens))
    assume(expected * tokens < 2**63 and expected < 2**40)
    assume((expected * tokens - 1) // length > 0)
    plan = _C.data.plan_gpt_indices(
        "test",
        first_document=0,
        last_document=3,
        tokens_per_epoch=tokens,
        sequence_length=length,
        num_samples=samples,
    )
    assert plan.num_epochs == expected
    assert plan.num_samples == (expected * tokens - 1) // length
    if expected < 1000:
        assert expected == count_epochs(tokens, length, samples, 1)


def test_a_shuffle_index_that_needs_64_bits_is_wide():
    for tokens, wide in ((2**32 - 2, False), (2**32 - 1, True)):
        plan = _C.data.plan_gpt_indices(
            "test",
            first_document=0,
            last_document=1,
            tokens_per_epoch=tokens,
            sequence_length=1,
            num_samples=None,
        )
        assert (plan.num_samples, plan.wide_shuffle_index) == (tokens - 1, wide)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_document": 0}, "no documents"),
        ({"tokens_per_epoch": 0}, "none of the 3 documents has a token"),
        ({"tokens_per_epoch": 8}, "less than one sample of 8"),
        ({"sequence_length": 0}, "sequence length of at least 1"),
        ({"num_samples": -1}, "number of samples >= 0"),
        ({"last_document": 2**31}, "2\\^31 - 1 documents"),
        ({"num_samples": 2**62, "sequence_length": 2**20}, "exceeds 2\\^63"),
    ],
)
def test_impossible_requests_are_data_errors(change, message):
    request = {
        "first_document": 0, "last_document": 3, "tokens_per_epoch": 100,
        "sequence_length": 8, "num_samples": None,
    }  # fmt: skip
    with pytest.raises(DataError, match=message):
        _C.data.plan_gpt_indices("some data", **{**request, **change})

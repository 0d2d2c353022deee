"""Sample maps over sentences: published vectors, and a transcription on random data."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import reference_sentences as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore import _C
from megacore.errors import DataError

BOUNDARIES = [0, 3, 3, 4, 9]
SIZES = [20, 30, 10, 40, 15, 25, 35, 5, 60]
TITLES = [5, 4, 3, 2]


def request(boundaries, *, max_length, num_samples, min_sentences, seed, first=0, last=None):
    return _C.data.MappingRequest(
        "test",
        first_document=first,
        last_document=len(boundaries) - 1 if last is None else last,
        num_samples=num_samples,
        max_length=max_length,
        min_sentences=min_sentences,
        seed=seed,
    )


def spans(boundaries, sizes, *, short_probability=0.1, wide=False, progress=None, **asked):
    return _C.data.map_spans(
        np.asarray(sizes, np.int32),
        np.asarray(boundaries, np.int64),
        request(boundaries, **asked),
        short_probability=short_probability,
        wide=wide,
        progress=progress,
    )


def blocks(boundaries, sizes, titles, *, wide=False, **asked):
    return _C.data.map_blocks(
        np.asarray(sizes, np.int32),
        np.asarray(boundaries, np.int64),
        np.asarray(titles, np.int32),
        request(boundaries, **asked),
        wide=wide,
    )


def test_published_vectors_of_spans():
    asked = {"max_length": 50, "num_samples": 6, "seed": 1234}
    rows = spans(BOUNDARIES, SIZES, min_sentences=2, **asked)
    assert rows.tolist() == [[7, 9, 50], [4, 7, 50], [0, 3, 50]] * 2
    assert rows.dtype == np.uint32
    rows = spans(BOUNDARIES, SIZES, min_sentences=1, **asked)
    assert rows.tolist() == [
        [0, 3, 50], [3, 4, 50], [3, 4, 50], [7, 9, 50],
        [0, 3, 50], [4, 7, 50], [4, 7, 50], [7, 9, 50],
    ]  # fmt: skip


def test_published_vector_of_blocks():
    asked = {"max_length": 50, "num_samples": None, "seed": 1, "min_sentences": 2}
    rows = blocks(BOUNDARIES, SIZES, TITLES, **asked)
    assert rows.tolist() == [[7, 9, 3, 2], [4, 7, 3, 1], [0, 3, 0, 0]]
    assert rows.dtype == np.uint32


@st.composite
def corpora(draw):
    per_document = draw(st.lists(st.integers(0, 45), min_size=1, max_size=12))
    count = sum(per_document)
    size = st.integers(0, 40) | st.sampled_from([0, 1, 512, 513, 40_000])
    sizes = draw(st.lists(size, min_size=count, max_size=count))
    return np.concatenate([[0], np.cumsum(per_document)]).tolist(), sizes


@settings(max_examples=200, deadline=None)
@given(
    corpus=corpora(),
    max_length=st.integers(2, 600),
    short_probability=st.sampled_from([0.0, 0.1, 0.4, 2 / 3, 1.0, 0.03]),
    seed=st.integers(0, 2**32 - 1),
    num_samples=st.none() | st.integers(1, 40),
    min_sentences=st.sampled_from([1, 2]),
    wide=st.booleans(),
)
def test_spans_equal_the_transcription(
    corpus, max_length, short_probability, seed, num_samples, min_sentences, wide
):
    boundaries, sizes = corpus
    asked = {
        "max_length": max_length,
        "short_probability": short_probability,
        "seed": seed,
        "min_sentences": min_sentences,
    }
    # An endless loop here is what the transcription must be spared.
    if not reference.map_spans(boundaries, sizes, num_samples=None, **asked):
        with pytest.raises(DataError, match=r"none of the .* documents .* can be used"):
            spans(boundaries, sizes, num_samples=num_samples, **asked)
        return
    rows = spans(boundaries, sizes, num_samples=num_samples, wide=wide, **asked)
    assert rows.tolist() == reference.map_spans(boundaries, sizes, num_samples=num_samples, **asked)
    assert rows.dtype == (np.uint64 if wide else np.uint32)


@settings(max_examples=150, deadline=None)
@given(
    corpus=corpora(),
    max_length=st.integers(2, 600),
    title=st.integers(0, 700),
    seed=st.integers(0, 2**32 - 1),
    num_samples=st.none() | st.integers(1, 40),
    min_sentences=st.sampled_from([1, 2]),
    wide=st.booleans(),
)
def test_blocks_equal_the_transcription(
    corpus, max_length, title, seed, num_samples, min_sentences, wide
):
    boundaries, sizes = corpus
    titles = [(title * (i + 1)) % 701 for i in range(len(boundaries) - 1)]
    asked = {"max_length": max_length, "seed": seed, "min_sentences": min_sentences}
    if not reference.map_blocks(boundaries, sizes, titles, num_samples=None, **asked):
        with pytest.raises(DataError, match="can be used"):
            blocks(boundaries, sizes, titles, num_samples=num_samples, **asked)
        return
    rows = blocks(boundaries, sizes, titles, num_samples=num_samples, wide=wide, **asked)
    assert rows.tolist() == reference.map_blocks(
        boundaries, sizes, titles, num_samples=num_samples, **asked
    )


def test_a_shuffle_longer_than_the_state_and_the_chunk():
    """More rows than the generator has words, and than are drawn at a time."""
    sizes = np.full(20_000, 7, np.int32)
    boundaries = np.arange(0, 20_001, 2)
    asked = {"max_length": 100, "num_samples": 25_000, "seed": 5, "min_sentences": 2}
    rows = spans(boundaries, sizes, short_probability=0.0, **asked)
    assert rows.tolist() == reference.map_spans(
        boundaries.tolist(), sizes.tolist(), short_probability=0.0, **asked
    )


def test_documents_of_a_split_and_their_numbers():
    asked = {"max_length": 50, "num_samples": None, "seed": 1, "min_sentences": 2}
    rows = blocks(BOUNDARIES, SIZES, TITLES, first=3, last=4, **asked)
    assert sorted(rows.tolist()) == [[4, 7, 3, 0], [7, 9, 3, 1]]
    rows = spans(BOUNDARIES, SIZES, short_probability=0.0, first=0, last=3, **asked)
    assert rows.tolist() == [[0, 3, 50]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 1}, "room for at least 2 tokens"),
        ({"num_samples": 0}, "at least 1 sample"),
        ({"min_sentences": 0}, "at least 1 sentence"),
        ({"min_sentences": 6}, "none of the 4 documents .9 sentences. can be used"),
    ],
)
def test_senseless_requests(change, message):
    asked = {"max_length": 50, "num_samples": 6, "seed": 1, "min_sentences": 2, **change}
    with pytest.raises(DataError, match=message):
        spans(BOUNDARIES, SIZES, **asked)


def test_titles_of_another_dataset():
    asked = {"max_length": 50, "num_samples": 6, "seed": 1, "min_sentences": 2}
    with pytest.raises(DataError, match="one title for each of the 4 documents, found 3"):
        blocks(BOUNDARIES, SIZES, TITLES[:3], **asked)


def test_progress_and_interruption():
    asked = {"max_length": 50, "seed": 1, "min_sentences": 2}
    heard: list[int] = []
    rows = spans(BOUNDARIES, SIZES, num_samples=100, progress=heard.append, **asked)
    assert heard == sorted(heard)
    assert heard[-1] == len(rows)

    def stop(rows: int) -> None:
        if rows > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spans(BOUNDARIES, SIZES, num_samples=10**9, progress=stop, **asked)

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        spans(BOUNDARIES, SIZES, num_samples=10**10, **asked)
    timer.join()

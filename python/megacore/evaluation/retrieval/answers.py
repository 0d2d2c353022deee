"""Whether a passage holds an answer (Chen et al. 2017, as used for open-domain questions)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import regex

from megacore.errors import DataError

# Runs of letters, digits and marks, or any other single sign that is not blank.
_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def has_answer(text: str, answers: Sequence[str], *, match: str) -> bool:
    """Whether one of the answers is in a text.

    Args:
        text: The passage.
        answers: Words ("string"), compared without case as whole tokens, or patterns ("regex").
        match: "string" or "regex".

    Raises:
        DataError: A pattern is broken.
    """
    text = unicodedata.normalize("NFD", text)
    if match == "regex":
        return any(_matches(unicodedata.normalize("NFD", answer), text) for answer in answers)
    tokens = _tokens(text)
    return any(_contains(tokens, _tokens(unicodedata.normalize("NFD", a))) for a in answers)


def _tokens(text: str) -> list[str]:
    return [token.lower() for token in _TOKENS.findall(text)]


def _contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    width = len(part)
    return width > 0 and any(
        tokens[first : first + width] == part for first in range(len(tokens) - width + 1)
    )


def _matches(pattern: str, text: str) -> bool:
    try:
        flags = re.IGNORECASE | re.UNICODE | re.MULTILINE
        return re.search(pattern, text, flags) is not None
    except re.error as error:
        raise DataError(f"the answer {pattern!r} is no pattern: {error}") from error

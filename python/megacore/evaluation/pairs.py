"""Texts as an encoder sees them: [CLS] A [SEP] B [SEP], cut and padded to a fixed length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacore.data.tokenizers import Tokenizer

_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """A text in one line, with single blanks and none before a full stop."""
    text = _BLANKS.sub(" ", text.replace("\n", " "))
    # Each pass joins every second of several full stops in a row.
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that frame the texts.

    Attributes:
        cls: Begins a sequence.
        sep: Ends a text.
        pad: Fills up behind the end.
    """

    cls: int
    sep: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """Those of a tokenizer.

        Raises:
            DataError: It has no such tokens.
        """
        return cls(tokenizer.cls, tokenizer.sep, max(tokenizer.pad, 0))


def write_pair(
    first: Sequence[int],
    second: Sequence[int],
    special: SpecialTokens,
    *,
    tokens: NDArray[np.int64],
    types: NDArray[np.int64],
) -> int:
    """Fills one row with a pair of texts; what does not fit is cut at the end.

    Args:
        first: Ids of text A.
        second: Ids of text B.
        special: What frames them.
        tokens: int64 [S] to fill.
        types: int64 [S] to fill: 0 for A and what frames it, 1 for B and the [SEP] behind it, 0
            behind the end.

    Returns:
        Number of tokens before the padding.
    """
    row = [special.cls, *first, special.sep, *second]
    kinds = [0] * (len(first) + 2) + [1] * len(second)
    if len(row) >= len(tokens):
        row, kinds = row[: len(tokens) - 1], kinds[: len(tokens) - 1]
    row.append(special.sep)
    kinds.append(1)
    length = len(row)
    tokens[:length], tokens[length:] = row, special.pad
    types[:length], types[length:] = kinds, 0
    return length

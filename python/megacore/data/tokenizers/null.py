"""NullTokenizer: text that already is a list of ids."""

from __future__ import annotations

from collections.abc import Sequence

from megacore.data.tokenizers.base import Tokenizer
from megacore.errors import DataError


class NullTokenizer(Tokenizer):
    """Reads integers separated by spaces; id N is the end-of-document token.

    Args of the constructor:
        num_ids: N, so that texts hold the ids 0..N-1 and the vocabulary has N + 1.
    """

    class_name = "_NullTokenizer"

    def __init__(self, num_ids: int) -> None:
        super().__init__(None, vocab_size=num_ids)
        if num_ids < 1:
            raise DataError(f"NullTokenizer: expected --vocab-size of at least 1, got {num_ids}")
        self._num_ids = num_ids

    @property
    def vocab_size(self) -> int:
        """N + 1."""
        return self._num_ids + 1

    @property
    def eod(self) -> int:
        """N."""
        return self._num_ids

    def tokenize(self, text: str) -> list[int]:
        """The integers of the text; DataError for anything else or an id above N."""
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            word = str(error).rsplit(": ", 1)[-1]
            raise DataError(
                f"NullTokenizer: expected integers separated by spaces, found {word:.60}"
            ) from error
        wrong = next((i for i in ids if not 0 <= i <= self._num_ids), None)
        if wrong is not None:
            raise DataError(
                f"NullTokenizer: token id {wrong} is outside the vocabulary "
                f"(0 to {self._num_ids} for --vocab-size {self._num_ids})"
            )
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The ids, separated by spaces."""
        return " ".join(str(i) for i in ids)

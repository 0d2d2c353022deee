"""What every tokenizer offers, whichever library does the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import numpy as np

from megacore.errors import DataError


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        class_name: Name under which the tokenizer enters the identity of cached indices.
    """

    class_name: str

    def __init__(self, *paths: str | None, **options: object) -> None:
        """Remember what tells this tokenizer from another one.

        Args:
            *paths: Files (or directory) that it was read from, in a fixed order.
            **options: Settings that change the ids it produces.
        """
        self._paths = paths
        self._options = options

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids before padding; every id is smaller."""

    @property
    def eod(self) -> int:
        """Id of the end-of-document token.

        Raises:
            DataError: The vocabulary has none.
        """
        raise self._without("an end-of-document token")

    @property
    def bos(self) -> int:
        """Id of the beginning-of-sequence token; DataError when there is none."""
        raise self._without("a beginning-of-sequence token")

    @property
    def eos(self) -> int:
        """Id of the end-of-sequence token; DataError when there is none."""
        raise self._without("an end-of-sequence token")

    @property
    def cls(self) -> int:
        """Id of the classification token; DataError when there is none."""
        raise self._without("a classification token")

    @property
    def sep(self) -> int:
        """Id of the separator token; DataError when there is none."""
        raise self._without("a separator token")

    @property
    def mask(self) -> int:
        """Id of the mask token; DataError when there is none."""
        raise self._without("a mask token")

    @property
    def pad(self) -> int:
        """Id used for padding, or -1 when the vocabulary has none that can be used."""
        return -1

    @property
    def extra_ids(self) -> list[int]:
        """Ids of the sentinel tokens `<extra_id_0>`, `<extra_id_1>`, ..., possibly none."""
        return []

    def continues_word(self) -> np.ndarray:
        """Which tokens continue the word before them: those that begin with `##`.

        Returns:
            uint8 [vocab_size], 1 for such a token.
        """
        return np.zeros(self.vocab_size, dtype=np.uint8)

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; special tokens are added only where the type always adds them."""

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, each as `tokenize` gives them."""
        return [self.tokenize(text) for text in texts]

    def tokenize_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of several texts, one after the other.

        Returns:
            ids [sum of lengths] int64 and lengths [len(texts)] int64.
        """
        return flatten(self.tokenize_batch(texts))

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids, as closely as the type allows."""

    def identity(self) -> dict[str, object]:
        """Ordered description that goes into the hash of cached indices.

        Returns:
            `class`, `tokenizer_path` (list), then every option as a string.
        """
        identity: dict[str, object] = {
            "class": self.class_name,
            "tokenizer_path": list(self._paths),
        }
        identity.update({name: str(value) for name, value in self._options.items()})
        return identity

    def _without(self, what: str) -> DataError:
        source = next((path for path in self._paths if path), None)
        where = f" ({source})" if source else ""
        return DataError(f"{self.class_name.strip('_')}{where} has no {what}")


def flatten(batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids as one array [sum of lengths] int64, and their lengths [len(batch)] int64."""
    lengths = np.fromiter(map(len, batch), dtype=np.int64, count=len(batch))
    total = int(lengths.sum(dtype=np.int64))
    return np.fromiter(chain.from_iterable(batch), dtype=np.int64, count=total), lengths


def padded_vocab_size(
    vocab_size: int, *, make_divisible_by: int, tensor_parallel_size: int = 1
) -> int:
    """Rows of the embedding table: vocab_size rounded up to a multiple that every rank can share.

    Args:
        vocab_size: Number of ids the tokenizer can produce.
        make_divisible_by: Wanted multiple per tensor-parallel rank.
        tensor_parallel_size: Ranks that share the table.
    """
    if make_divisible_by < 1 or tensor_parallel_size < 1:
        raise ValueError(
            "make_divisible_by and tensor_parallel_size must be at least 1, "
            f"got {make_divisible_by} and {tensor_parallel_size}"
        )
    multiple = make_divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple

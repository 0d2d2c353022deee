"""GPT2BPETokenizer: byte-level BPE from vocab.json and merges.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from megacore.data.tokenizers.base import Tokenizer
from megacore.data.tokenizers.bpe_engines import build_engine, special_tokens
from megacore.data.tokenizers.byte_level import (
    BYTE_OF_CHAR,
    CHAR_OF_BYTE,
    END_OF_TEXT,
    read_byte_level_files,
)
from megacore.errors import DataError

# Bytes that never occur in UTF-8: a trained vocabulary may lack them without harm.
_NEVER_IN_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])


class GPT2BPETokenizer(Tokenizer):
    """Byte-level BPE; `<|endoftext|>` inside a text is ordinary text, as in the original.

    Args of the constructor:
        vocab_file: vocab.json, token -> id.
        merge_file: merges.txt.
        backend: "auto", "tiktoken", "tokenizers" or "gigatoken".
    """

    class_name = "_GPT2BPETokenizer"

    def __init__(self, vocab_file: str, merge_file: str, *, backend: str = "auto") -> None:
        super().__init__(vocab_file, merge_file)
        files = read_byte_level_files(vocab_file, merge_file)
        self._engine = build_engine(files, backend)
        self._vocab = files.vocab
        self._eod = files.vocab.get(END_OF_TEXT)
        self._specials = special_tokens(files)
        self._bytes_of_id: list[bytes] | None = None
        missing = [
            byte
            for byte in range(256)
            if byte not in _NEVER_IN_UTF8 and CHAR_OF_BYTE[byte] not in files.vocab
        ]
        pattern = b"[" + b"".join(re.escape(bytes([byte])) for byte in missing) + b"]"
        self._unknown_byte = re.compile(pattern) if missing else None

    @property
    def backend(self) -> str:
        """Name of the library that does the work."""
        return self._engine.name

    @property
    def vocab_size(self) -> int:
        """Entries of vocab.json."""
        return len(self._vocab)

    @property
    def eod(self) -> int:
        """Id of <|endoftext|>."""
        if self._eod is None:
            raise self._without(f"{END_OF_TEXT} token")
        return self._eod

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.tokenize_batch([text])[0]

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts.

        Raises:
            DataError: A text needs a byte that the vocabulary does not have.
        """
        self._check_bytes(texts)
        return self._engine.encode(texts)

    def tokenize_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of several texts, one after the other; raises as `tokenize_batch`."""
        self._check_bytes(texts)
        return self._engine.encode_flat(texts)

    def _check_bytes(self, texts: Sequence[str]) -> None:
        if self._unknown_byte is None:
            return
        for text in texts:
            found = self._unknown_byte.search(text.encode("utf-8", "surrogatepass"))
            if found:
                raise DataError(
                    f"{self._paths[0]}: the vocabulary has no token for byte "
                    f"0x{found[0][0]:02x}, which a text contains; train it with all 256 bytes"
                )

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: An id is not in the vocabulary.
        """
        if self._bytes_of_id is None:
            table = [b""] * len(self._vocab)
            for token, i in self._vocab.items():
                plain = token in self._specials
                table[i] = token.encode() if plain else bytes(BYTE_OF_CHAR[c] for c in token)
            self._bytes_of_id = table
        for i in ids:
            if not 0 <= i < len(self._bytes_of_id):
                raise DataError(
                    f"token id {i} is not in {self._paths[0]} (ids 0 to {len(self._vocab) - 1})"
                )
        return b"".join(self._bytes_of_id[i] for i in ids).decode("utf-8", "replace")

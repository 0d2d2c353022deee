"""BertWordPieceLowerCase and BertWordPieceCase: WordPiece from vocab.txt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megacore.data.tokenizers.base import Tokenizer
from megacore.data.tokenizers.files import read_text
from megacore.errors import DataError

# Words longer than this are [UNK] as a whole, as in the original BERT code.
MAX_CHARS_PER_WORD = 200
_REQUIRED = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")


class BertWordPieceTokenizer(Tokenizer):
    """BERT's tokenizer, with [BOS], [EOS] and sentinels appended to its vocabulary.

    Nothing is added around a text, and special tokens inside a text are ordinary text.

    Args of the constructor:
        vocab_file: vocab.txt, one token a line.
        lower_case: Lower-case and strip accents first.
        extra_ids: Number of `<extra_id_i>` sentinels to append.
    """

    class_name = "_BertWordPieceTokenizer"

    def __init__(self, vocab_file: str, *, lower_case: bool, extra_ids: int = 0) -> None:
        super().__init__(vocab_file, lower_case=lower_case, vocab_extra_ids=extra_ids)
        from tokenizers import Tokenizer as Engine
        from tokenizers import models, normalizers, pre_tokenizers

        self._vocab = _read_vocab(vocab_file)
        model = models.WordPiece(
            vocab=dict(self._vocab),
            unk_token="[UNK]",
            max_input_chars_per_word=MAX_CHARS_PER_WORD,
        )
        self._engine = Engine(model)
        self._engine.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
        self._engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
        for token in ("[BOS]", "[EOS]", *sentinels):
            self._vocab.setdefault(token, len(self._vocab))
        self._extra_ids = [self._vocab[token] for token in sentinels]
        self._token_of = {i: token for token, i in self._vocab.items()}

    @property
    def vocab_size(self) -> int:
        """Lines of vocab.txt plus what was appended."""
        return len(self._vocab)

    @property
    def cls(self) -> int:
        """Id of [CLS]."""
        return self._vocab["[CLS]"]

    @property
    def sep(self) -> int:
        """Id of [SEP]."""
        return self._vocab["[SEP]"]

    @property
    def pad(self) -> int:
        """Id of [PAD]."""
        return self._vocab["[PAD]"]

    @property
    def mask(self) -> int:
        """Id of [MASK]."""
        return self._vocab["[MASK]"]

    @property
    def bos(self) -> int:
        """Id of [BOS]."""
        return self._vocab["[BOS]"]

    @property
    def eos(self) -> int:
        """Id of [EOS]."""
        return self._vocab["[EOS]"]

    @property
    def extra_ids(self) -> list[int]:
        """Ids of the sentinels."""
        return list(self._extra_ids)

    def continues_word(self) -> np.ndarray:
        """Word pieces: uint8 [vocab_size], 1 for tokens that begin with ##."""
        flags = np.zeros(self.vocab_size, dtype=np.uint8)
        flags[[i for i, token in self._token_of.items() if token.startswith("##")]] = 1
        return flags

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The tokens separated by spaces, word pieces joined; [PAD] and [CLS] are left out."""
        tokens = []
        for i in ids:
            if i not in self._token_of:
                raise DataError(
                    f"token id {i} is not in {self._paths[0]} (ids 0 to {len(self._vocab) - 1})"
                )
            tokens.append(self._token_of[i])
        kept = [token for token in tokens if token not in ("[PAD]", "[CLS]")]
        return " ".join(kept).replace(" ##", "")


def _read_vocab(path: str) -> dict[str, int]:
    text = read_text(path, "WordPiece vocabulary (vocab.txt)")
    lines = text.split("\n")
    if lines and not lines[-1].strip():
        lines.pop()
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        token = line.strip()
        if token in vocab:
            raise DataError(
                f"{path}: line {number}: token {token!r:.60} stands on line {vocab[token] + 1} too"
            )
        vocab[token] = number - 1
    missing = [token for token in _REQUIRED if token not in vocab]
    if missing:
        raise DataError(
            f"{path}: expected a WordPiece vocabulary, one token a line; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in it "
            f"({len(vocab)} lines)"
        )
    return vocab

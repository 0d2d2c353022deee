"""SentencePieceTokenizer, GPTSentencePieceTokenizer and Llama2Tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from megacore.data.tokenizers.base import Tokenizer
from megacore.data.tokenizers.files import read_bytes
from megacore.errors import DataError


def _load_model(path: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    content = read_bytes(path, "sentencepiece model")
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        if processor.vocab_size() < 1:
            raise RuntimeError("it has no pieces")
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{path}: expected a sentencepiece model: {error}") from error
    return processor


class GPTSentencePieceTokenizer(Tokenizer):
    """A sentencepiece model as it is; the end of a document is the model's eos.

    Args of the constructor:
        model_file: sentencepiece .model.
    """

    class_name = "_GPTSentencePieceTokenizer"

    def __init__(self, model_file: str) -> None:
        # The options of the base type belong to the identity although this type has no sentinels.
        super().__init__(model_file, vocab_extra_ids=0)
        self._model = _load_model(model_file)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self._model.vocab_size())

    @property
    def eod(self) -> int:
        """The model's eos."""
        return self.eos

    @property
    def eos(self) -> int:
        """The model's eos; DataError when it has none."""
        return self._own(self._model.eos_id(), "eos piece")

    @property
    def bos(self) -> int:
        """The model's bos; DataError when it has none."""
        return self._own(self._model.bos_id(), "bos piece")

    @property
    def pad(self) -> int:
        """The model's pad id, often -1."""
        return int(self._model.pad_id())

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self._model.encode(text, out_type=int)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids; DataError when an id is no piece."""
        check_ids(ids, self.vocab_size, self._paths[0])
        return str(self._model.decode([int(i) for i in ids]))

    def _own(self, piece_id: int, what: str) -> int:
        if piece_id < 0:
            raise self._without(what)
        return int(piece_id)


class Llama2Tokenizer(GPTSentencePieceTokenizer):
    """A sentencepiece model that starts every text with its bos, in preparation too."""

    class_name = "_Llama2Tokenizer"

    @property
    def pad(self) -> int:
        """No usable padding id."""
        return -1

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text behind the bos."""
        return [self.bos, *super().tokenize(text)]


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with special tokens appended where it lacks them.

    Appended in this order if absent: `<CLS>`, `<SEP>`, `<EOD>`, `<MASK>`, the model's pad, bos and
    eos pieces (`<PAD>`, `<BOS>`, `<EOS>` when it has none) and the sentinels. All of them are
    recognised inside a text.

    Args of the constructor:
        model_file: sentencepiece .model.
        extra_ids: Number of `<extra_id_i>` sentinels.
    """

    class_name = "_SentencePieceTokenizer"

    def __init__(self, model_file: str, *, extra_ids: int = 0) -> None:
        super().__init__(model_file, vocab_extra_ids=extra_ids)
        self._model = _load_model(model_file)
        pieces: dict[str, int] = {
            self._model.id_to_piece(i): i for i in range(self._model.vocab_size())
        }

        def own_or(piece_id: int, fallback: str) -> str:
            return str(self._model.id_to_piece(piece_id)) if piece_id >= 0 else fallback

        self._pad_piece = own_or(self._model.pad_id(), "<PAD>")
        self._bos_piece = own_or(self._model.bos_id(), "<BOS>")
        self._eos_piece = own_or(self._model.eos_id(), "<EOS>")
        sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
        self._specials: dict[str, int] = {}
        for token in (
            *("<CLS>", "<SEP>", "<EOD>", "<MASK>"),
            *(self._pad_piece, self._bos_piece, self._eos_piece),
            *sentinels,
        ):
            self._specials[token] = pieces.setdefault(token, len(pieces))
        self._size = len(pieces)
        self._extra_ids = [self._specials[token] for token in sentinels]
        self._special_of = {i: token for token, i in self._specials.items()}
        # Alternatives are tried in order, so of two that start at one place the earlier wins.
        self._split = re.compile("(" + "|".join(map(re.escape, self._specials)) + ")")

    @property
    def vocab_size(self) -> int:
        """Pieces plus what was appended."""
        return self._size

    @property
    def eod(self) -> int:
        """Id of <EOD>."""
        return self._specials["<EOD>"]

    @property
    def cls(self) -> int:
        """Id of <CLS>."""
        return self._specials["<CLS>"]

    @property
    def sep(self) -> int:
        """Id of <SEP>."""
        return self._specials["<SEP>"]

    @property
    def mask(self) -> int:
        """Id of <MASK>."""
        return self._specials["<MASK>"]

    @property
    def pad(self) -> int:
        """Id of the pad piece."""
        return self._specials[self._pad_piece]

    @property
    def bos(self) -> int:
        """Id of the bos piece."""
        return self._specials[self._bos_piece]

    @property
    def eos(self) -> int:
        """Id of the eos piece."""
        return self._specials[self._eos_piece]

    @property
    def extra_ids(self) -> list[int]:
        """Ids of the sentinels."""
        return list(self._extra_ids)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; what stands between special tokens is encoded on its own."""
        ids: list[int] = []
        for position, part in enumerate(self._split.split(text)):
            if position % 2:
                ids.append(self._specials[part])
            elif part:
                ids.extend(self._model.encode(part, out_type=int))
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids, every special token followed by a space."""
        check_ids(ids, self.vocab_size, self._paths[0])
        text = ""
        ordinary: list[int] = []
        for i in ids:
            if i in self._special_of:
                text += f"{self._model.decode(ordinary)} {self._special_of[i]} "
                ordinary = []
            else:
                ordinary.append(int(i))
        return text + str(self._model.decode(ordinary))


def check_ids(ids: Sequence[int], vocab_size: int, path: str | None) -> None:
    """DataError when an id is outside a vocabulary."""
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise DataError(f"token id {wrong} is not in {path} (ids 0 to {vocab_size - 1})")

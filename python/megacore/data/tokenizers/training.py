"""Making a vocabulary from text: byte-level BPE or WordPiece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megacore.data.tokenizers.byte_level import END_OF_TEXT
from megacore.durable import published
from megacore.errors import DataError

_WORD_PIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class TrainedTokenizer:
    """What a training wrote.

    Attributes:
        vocab_size: Number of ids.
        files: The files, in the order vocabulary, merges.
        texts: Number of texts it learned from.
    """

    vocab_size: int
    files: tuple[str, ...]
    texts: int


def train_byte_level_bpe(
    texts: Iterator[str], directory: str, *, vocab_size: int, min_frequency: int = 2
) -> TrainedTokenizer:
    """Learns a byte-level BPE and writes it as vocab.json and merges.txt, like GPT-2's.

    Ids: the 256 bytes, the merges in order, then `<|endoftext|>`. The words that occur are kept
    in memory, the texts are not.

    Args:
        texts: Texts to learn from.
        directory: Where to write; made if necessary.
        vocab_size: Wanted number of ids, `<|endoftext|>` included.
        min_frequency: Pairs that are rarer are not joined.

    Raises:
        DataError: There is no text, or vocab_size is below 257.
    """
    if vocab_size < 257:
        raise DataError(
            f"--vocab-size {vocab_size}: expected at least 257 (256 bytes and {END_OF_TEXT})"
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer=trainer)
    counted.check()
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    vocab[END_OF_TEXT] = len(vocab)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocab_file = _write(directory, "vocab.json", json.dumps(vocab, ensure_ascii=False))
    merge_file = _write(directory, "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    return TrainedTokenizer(len(vocab), (vocab_file, merge_file), counted.texts)


def train_word_piece(
    texts: Iterator[str],
    directory: str,
    *,
    vocab_size: int,
    lower_case: bool = True,
    min_frequency: int = 2,
) -> TrainedTokenizer:
    """Learns a WordPiece vocabulary and writes it as vocab.txt, like BERT's.

    Args:
        texts: Texts to learn from.
        directory: Where to write; made if necessary.
        vocab_size: Wanted number of lines; the five special tokens come first.
        lower_case: Learn lower-case words without accents (for BertWordPieceLowerCase).
        min_frequency: Rarer pieces are left out.

    Raises:
        DataError: There is no text, or vocab_size is too small.
    """
    if vocab_size < 100:
        raise DataError(f"--vocab-size {vocab_size}: expected at least 100")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=_WORD_PIECE_SPECIALS,
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer=trainer)
    counted.check()
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    vocab_file = _write(directory, "vocab.txt", "".join(f"{token}\n" for token, _ in vocab))
    return TrainedTokenizer(len(vocab), (vocab_file,), counted.texts)


class _Counted:
    """Passes texts on, counts them, and remembers an error that the library would swallow."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._next: Callable[[], str] = iter(texts).__next__
        self.texts = 0
        self._error: Exception | None = None

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        try:
            text = self._next()
        except StopIteration:
            raise
        except Exception as error:
            self._error = error
            raise StopIteration from error
        self.texts += 1
        return text

    def check(self) -> None:
        if self._error is not None:
            raise self._error
        if not self.texts:
            raise DataError("there is no text to learn from")


def _write(directory: str, name: str, content: str) -> str:
    path = Path(directory, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as file:
            file.write(content.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error
    return str(path)

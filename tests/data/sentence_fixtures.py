"""Small datasets of sentences, and a vocabulary with word pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from reference_masking import Vocabulary

from megacore.data.indexed_dataset import IndexedDatasetWriter
from megacore.errors import DataError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"]
SENTINELS = [f"<extra_id_{i}>" for i in range(20)]
WORDS = [("##" if i % 3 == 0 else "") + f"w{i}" for i in range(60)]
TEXTS = [*SPECIAL, *SENTINELS, *WORDS]
FIRST_WORD = len(SPECIAL) + len(SENTINELS)


class WordPieces:
    """What datasets of sentences ask of a tokenizer."""

    pad, unk, cls, sep, mask, bos, eos = range(7)
    vocab_size = len(TEXTS)

    def __init__(self, sentinels: int = len(SENTINELS), *, without: str | None = None) -> None:
        self.extra_ids = list(range(len(SPECIAL), len(SPECIAL) + sentinels))
        self.without = without

    def __getattribute__(self, name: str) -> object:
        if name != "without" and name == object.__getattribute__(self, "__dict__").get("without"):
            raise DataError(f"no {name}")
        return object.__getattribute__(self, name)

    def continues_word(self) -> np.ndarray:
        return np.array([text.startswith("##") for text in TEXTS], dtype=np.uint8)

    def identity(self) -> dict[str, object]:
        return {"class": "WordPieces", "tokenizer_path": [None]}

    def reference(self) -> Vocabulary:
        return Vocabulary(
            TEXTS, self.cls, self.sep, self.mask, self.pad, self.bos, self.eos, self.extra_ids
        )


def write_sentences(
    prefix: Path,
    per_document: list[int],
    *,
    seed: int = 0,
    longest: int = 14,
    special: bool = False,
) -> list[list[int]]:
    """Documents of random sentences; with `special`, [CLS] and [SEP] occur among the words."""
    random = np.random.default_rng(seed)
    choices = np.arange(FIRST_WORD, len(TEXTS))
    if special:
        choices = np.concatenate([choices, [WordPieces.cls, WordPieces.sep] * 6])
    sentences = [
        random.choice(choices, random.integers(1, longest)).tolist()
        for _ in range(sum(per_document))
    ]
    with IndexedDatasetWriter(str(prefix), np.uint16) as writer:
        writer.add_documents(
            np.concatenate([np.array(s, np.uint16) for s in sentences]),
            [len(s) for s in sentences],
            per_document,
        )
    return sentences


def write_titles(prefix: Path, count: int, *, longest: int = 6, seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    titles = [
        random.integers(FIRST_WORD, len(TEXTS), random.integers(1, longest)).tolist()
        for _ in range(count)
    ]
    with IndexedDatasetWriter(str(prefix), np.uint16) as writer:
        writer.add_documents(np.concatenate(titles).astype(np.uint16), [len(t) for t in titles])
    return titles

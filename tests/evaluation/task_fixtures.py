"""A small vocabulary, a small GPT-2 of Hugging Face and published-style text for tests of tasks."""

from __future__ import annotations

import functools
import pydoc_data.topics
import re
from pathlib import Path
from random import Random

import torch
import transformers

from megacore import cli


@functools.cache
def english() -> str:
    """Some hundred kilobytes of English, as every Python carries them."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


def train_vocabulary(directory: Path, size: int = 640) -> tuple[Path, Path]:
    """vocab.json and merges.txt of a byte-level BPE."""
    source = directory / "corpus.txt"
    source.write_text(english()[:60_000], encoding="utf-8")
    words = ["train-tokenizer", "--input", str(source), "--output", str(directory)]
    assert cli.run(cli.dispatch, ["data", *words, "--vocab-size", str(size)]) == 0
    return directory / "vocab.json", directory / "merges.txt"


def small_gpt2(
    directory: Path, *, vocab_size: int, positions: int = 48
) -> transformers.GPT2LMHeadModel:
    """A GPT-2 with weights large enough that its predictions differ, saved in `directory`."""
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.4,
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(directory)
    return model.double()


def train_word_pieces(directory: Path, size: int = 700) -> Path:
    """vocab.txt of a WordPiece vocabulary in small letters."""
    source = directory / "words.txt"
    source.write_text(english()[:60_000], encoding="utf-8")
    words = ["train-tokenizer", "--input", str(source), "--output", str(directory)]
    more = ["--vocab-size", str(size), "--kind", "wordpiece"]
    assert cli.run(cli.dispatch, ["data", *words, *more]) == 0
    return directory / "vocab.txt"


def write_mnli(path: Path, count: int, *, seed: int) -> Path:
    """Pairs whose label shows in single words of the second text: a tiny model learns it."""
    random = Random(seed)
    cues = {"contradiction": "not", "entailment": "all", "neutral": "is"}
    head = [f"c{i}" for i in range(12)]
    lines = ["\t".join(head)]
    for index in range(count):
        label = random.choice(sorted(cues))
        first = " ".join(random.choice(_WORDS) for _ in range(random.randint(1, 6)))
        second = " ".join([random.choice(_WORDS), cues[label], random.choice(_WORDS)])
        lines.append("\t".join([str(index), *["-"] * 7, first, second, label, label]))
    path.write_text("\n".join(lines) + "\n")
    return path


_WORDS = re.findall(r"\w+", "the list of names that can be used in a module or class when it runs")

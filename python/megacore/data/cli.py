"""`megacore data info|show|train-tokenizer|make-task`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from megacore.config.faults import required
from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.data.config import TokenizerConfig
from megacore.errors import EXIT_OK, Fault, Information, UsageError

_HELP = """\
usage: megacore data VERB [flags]

  info PREFIX ...      sequences, documents, tokens, lengths, size, damage of a dataset
  show PREFIX          token ids of some sequences, and their text with a tokenizer
  train-tokenizer      learn a vocabulary from text files
  make-task NAME       files in the format of a published task, made from a text

megacore data VERB --help lists the flags of a verb."""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Which datasets to summarise."""

    GROUP: ClassVar[str] = "dataset"

    prefix: tuple[str, ...] | None = flag(
        "prefix", default=None, nargs="*", help="paths of .bin/.idx pairs without extension"
    )
    multimodal: bool = flag("--multimodal", default=False, help="there is a mode per sequence")

    def faults(self) -> Iterator[Fault]:
        """The prefix that is not given."""
        yield from value_faults(self)
        if not self.prefix:
            yield required("PREFIX")


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Which sequences to show."""

    GROUP: ClassVar[str] = "dataset"

    prefix: tuple[str, ...] | None = flag(
        "prefix", default=None, nargs="*", help="path of a .bin/.idx pair without extension"
    )
    index: int = flag("--index", default=0, help="first sequence; negative counts from the end")
    count: int = flag("--count", default=1, help="number of sequences", bounds="[1, inf)")
    max_tokens: int = flag(
        "--max-tokens", default=0, help="show so many tokens of each; 0: all", bounds="[0, inf)"
    )
    multimodal: bool = flag("--multimodal", default=False, help="there is a mode per sequence")

    def faults(self) -> Iterator[Fault]:
        """The prefix that is not given."""
        yield from value_faults(self)
        if not self.prefix:
            yield required("PREFIX")


@dataclass(frozen=True, kw_only=True)
class OptionalTokenizerConfig(TokenizerConfig):
    """A tokenizer that may be left out."""

    def faults(self) -> Iterator[Fault]:
        """Nothing is missing while no tokenizer is named."""
        if self.given:
            yield from TokenizerConfig.faults(self)
        else:
            yield from value_faults(self)

    @property
    def given(self) -> bool:
        """Whether anything says which tokenizer is meant."""
        return any((self.tokenizer_type, self.vocab_file, self.merge_file, self.tokenizer_model))

    def resolved(self) -> TokenizerConfig:
        """As it is; the tokenizer is completed when it is built."""
        return self


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """What to learn, from what."""

    GROUP: ClassVar[str] = "training a tokenizer"

    input: tuple[str, ...] | None = flag(
        "--input",
        default=None,
        nargs="+",
        help="text files, as for megacore preprocess; required",
    )
    output: str | None = flag(
        "--output",
        default=None,
        help="folder for vocab.json and merges.txt, or vocab.txt; required",
    )
    vocab_size: int = flag(
        "--vocab-size", default=50257, help="number of ids, special tokens included"
    )
    kind: str = flag(
        "--kind",
        default="bpe",
        choices=("bpe", "wordpiece"),
        help="byte-level BPE (GPT2BPETokenizer) or WordPiece (BertWordPiece)",
    )
    cased: bool = flag("--cased", default=False, help="WordPiece: keep case and accents")
    min_frequency: int = flag(
        "--min-frequency", default=2, help="rarer pieces are not learned", bounds="[1, inf)"
    )
    json_keys: tuple[str, ...] = flag(
        "--json-keys", default=("text",), nargs="+", help="fields or columns to learn from"
    )
    input_format: str = flag(
        "--input-format",
        default="auto",
        choices=("auto", "jsonl", "text", "parquet"),
        help="auto goes by the name: .txt is text, .parquet Parquet, all else JSON lines",
    )

    def faults(self) -> Iterator[Fault]:
        """Required settings that are not given."""
        yield from value_faults(self)
        if not self.input:
            yield required("--input")
        if not self.output:
            yield required("--output")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the data verbs; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        raise Information(_HELP)
    verbs = {
        "info": info,
        "show": show,
        "train-tokenizer": train_tokenizer,
        "make-task": make_task,
    }
    if not words or words[0] not in verbs:
        found = f"there is no verb {words[0]!r}" if words else "a verb is missing"
        raise UsageError(f"megacore data: {found}; one of: {', '.join(verbs)}")
    return verbs[words[0]](words[1:])


def info(argv: Sequence[str]) -> int:
    """Prints a summary of each dataset."""
    parsed = parse(
        [InfoConfig],
        argv,
        prog="megacore data info",
        description="Summarise datasets and check both of their files.",
    )
    from megacore.data.inspect import format_summary, summarize

    config: InfoConfig = parsed.configs[InfoConfig]
    for prefix in config.prefix or ():
        print(format_summary(summarize(_bare(prefix), multimodal=config.multimodal)))
    return EXIT_OK


def show(argv: Sequence[str]) -> int:
    """Prints some sequences of a dataset."""
    parsed = parse(
        [ShowConfig, OptionalTokenizerConfig],
        argv,
        prog="megacore data show",
        description="Print token ids of a dataset, and their text when a tokenizer is given.",
    )
    from megacore.data.inspect import show_sequences
    from megacore.data.tokenizers import build_tokenizer

    config: ShowConfig = parsed.configs[ShowConfig]
    files: OptionalTokenizerConfig = parsed.configs[OptionalTokenizerConfig]
    tokenizer = None
    if files.given:
        values = {field.name: getattr(files, field.name) for field in fields(files)}
        tokenizer = build_tokenizer(TokenizerConfig(**values))
    for prefix in config.prefix or ():
        lines = show_sequences(
            _bare(prefix),
            config.index,
            config.count,
            tokenizer=tokenizer,
            max_tokens=config.max_tokens,
            multimodal=config.multimodal,
        )
        for line in lines:
            print(line)
    return EXIT_OK


def train_tokenizer(argv: Sequence[str]) -> int:
    """Learns a vocabulary from text files."""
    parsed = parse(
        [TrainTokenizerConfig],
        argv,
        prog="megacore data train-tokenizer",
        description="Learn a byte-level BPE or WordPiece vocabulary from text files.",
    )
    from megacore.data.preprocess.texts import read_texts
    from megacore.data.tokenizers.training import train_byte_level_bpe, train_word_piece

    config: TrainTokenizerConfig = parsed.configs[TrainTokenizerConfig]
    texts = read_texts(config.input or (), config.json_keys, input_format=config.input_format)
    output = config.output or ""
    if config.kind == "bpe":
        trained = train_byte_level_bpe(
            texts, output, vocab_size=config.vocab_size, min_frequency=config.min_frequency
        )
    else:
        trained = train_word_piece(
            texts,
            output,
            vocab_size=config.vocab_size,
            lower_case=not config.cased,
            min_frequency=config.min_frequency,
        )
    print(f"learned {trained.vocab_size} tokens from {trained.texts} texts")
    if trained.vocab_size < config.vocab_size:
        print(
            f"(less than --vocab-size {config.vocab_size}: the text has no more pairs that occur "
            f"{config.min_frequency} times)"
        )
    for path in trained.files:
        print(f"wrote {path}")
    return EXIT_OK


def make_task(argv: Sequence[str]) -> int:
    """Makes the files of a task from a text."""
    from megacore.evaluation.make_task.command import main as make

    return make(argv)


def _bare(prefix: str) -> str:
    """The prefix, also when one of the two files was named."""
    for extension in (".bin", ".idx"):
        prefix = prefix.removesuffix(extension)
    return prefix

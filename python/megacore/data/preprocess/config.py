"""Settings of text preparation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import required
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.data.config import TokenizerConfig
from megacore.errors import Fault

# What the script of this name has always assumed for a NullTokenizer.
DEFAULT_NULL_VOCAB_SIZE = 786


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From text files to PREFIX_KEY_LEVEL.bin/.idx."""

    GROUP: ClassVar[str] = "text preparation"

    input: tuple[str, ...] | None = flag(
        "--input",
        default=None,
        nargs="+",
        help="files or patterns in quotes; JSON lines, plain text or Parquet, also compressed "
        "(.gz, .zst, .bz2, .xz); required",
    )
    output_prefix: str | None = flag(
        "--output-prefix",
        default=None,
        help="the output is PREFIX_KEY_document.bin/.idx (PREFIX_KEY_sentence with "
        "--split-sentences); required",
    )
    json_keys: tuple[str, ...] = flag(
        "--json-keys",
        default=("text",),
        nargs="+",
        help="fields (Parquet: columns) to encode, an output pair for each",
    )
    input_format: str = flag(
        "--input-format",
        default="auto",
        choices=("auto", "jsonl", "text", "parquet"),
        help="auto goes by the name: .txt is text, .parquet Parquet, all else JSON lines",
    )
    text_documents: str = flag(
        "--text-documents",
        default="file",
        choices=("file", "paragraph", "line"),
        help="what a document is in plain text: the file, a paragraph between blank lines, or a "
        "line; blank ones are left out",
    )
    split_sentences: bool = flag(
        "--split-sentences", default=False, help="make every sentence a sequence (Punkt)"
    )
    keep_newlines: bool = flag(
        "--keep-newlines",
        default=False,
        help="keep the whitespace after each sentence when splitting",
    )
    lang: str = flag("--lang", default="english", help="language of the sentence splitter")
    append_eod: bool = flag(
        "--append-eod", default=False, help="end every document with the end-of-document token"
    )
    workers: int | None = flag(
        "--workers", default=None, help="processes; default: the cores", bounds="[1, inf)"
    )
    partitions: int = flag(
        "--partitions",
        default=1,
        help="P > 1 deals the lines out to P parts in turn and writes the parts one after the "
        "other",
        bounds="[1, inf)",
    )
    keep_sequential_samples: bool = flag(
        "--keep-sequential-samples",
        default=False,
        help="with --partitions, keep the order of the input",
    )
    log_interval: int = flag(
        "--log-interval", default=1000, help="documents between progress lines", bounds="[1, inf)"
    )
    on_error: str = flag(
        "--on-error",
        default="stop",
        choices=("stop", "skip"),
        help="what to do about a broken record: stop, or report it and go on",
    )

    @property
    def level(self) -> str:
        """What a sequence of the output is, as it stands in the file name."""
        return "sentence" if self.split_sentences else "document"

    def prefix(self, key: str) -> str:
        """Prefix of the pair that holds `key`."""
        return f"{self.output_prefix}_{key}_{self.level}"

    def faults(self) -> Iterator[Fault]:
        """Required settings that are not given, values out of range."""
        yield from value_faults(self)
        if not self.input:
            yield required("--input")
        if not self.output_prefix:
            yield required("--output-prefix")

    def resolved(self) -> PreprocessConfig:
        """A copy with the number of workers filled and each key once."""
        workers = self.workers or available_cores()
        return replace(self, workers=workers, json_keys=tuple(dict.fromkeys(self.json_keys)))


@dataclass(frozen=True, kw_only=True)
class PreprocessTokenizerConfig(TokenizerConfig):
    """The tokenizer of text preparation, which has to be named."""

    def faults(self) -> Iterator[Fault]:
        """As for training, but nothing stands in for a missing --tokenizer-type."""
        if self.tokenizer_type is None:
            yield from value_faults(self)
            yield required("--tokenizer-type")
        else:
            yield from TokenizerConfig.faults(self._with_defaults())

    def resolved(self) -> PreprocessTokenizerConfig:
        """A copy with the size of a NullTokenizer filled."""
        config = self._with_defaults()
        TokenizerConfig.resolved(config)
        return config

    def _with_defaults(self) -> PreprocessTokenizerConfig:
        if self.tokenizer_type == "NullTokenizer" and self.vocab_size is None:
            return replace(self, vocab_size=DEFAULT_NULL_VOCAB_SIZE)
        return self


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

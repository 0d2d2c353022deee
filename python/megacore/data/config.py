"""Settings of datasets, samplers and tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault

DEFAULT_TOKENIZER = "GPT2BPETokenizer"

# What each kind of tokenizer cannot do without.
TOKENIZER_NEEDS: dict[str, tuple[str, ...]] = {
    "BertWordPieceLowerCase": ("--vocab-file",),
    "BertWordPieceCase": ("--vocab-file",),
    "GPT2BPETokenizer": ("--vocab-file", "--merge-file"),
    "SentencePieceTokenizer": ("--tokenizer-model",),
    "GPTSentencePieceTokenizer": ("--tokenizer-model",),
    "HuggingFaceTokenizer": ("--tokenizer-model",),
    "Llama2Tokenizer": ("--tokenizer-model",),
    "TikTokenizer": ("--tokenizer-model", "--tiktoken-pattern"),
    "NullTokenizer": ("--vocab-size",),
}

DEFAULT_SPLIT = "969, 30, 1"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer, and its files."""

    GROUP: ClassVar[str] = "tokenizer"

    vocab_size: int | None = flag(
        "--vocab-size", default=None, help="size before padding (NullTokenizer)", bounds="[1, inf)"
    )
    vocab_file: str | None = flag("--vocab-file", default=None, help="vocabulary file")
    merge_file: str | None = flag("--merge-file", default=None, help="BPE merges")
    vocab_extra_ids: int = flag(
        "--vocab-extra-ids", default=0, help="sentinel tokens for T5", bounds="[0, inf)"
    )
    tokenizer_type: str | None = flag(
        "--tokenizer-type",
        default=None,
        choices=(
            "BertWordPieceLowerCase",
            "BertWordPieceCase",
            "GPT2BPETokenizer",
            "SentencePieceTokenizer",
            "GPTSentencePieceTokenizer",
            "HuggingFaceTokenizer",
            "Llama2Tokenizer",
            "TikTokenizer",
            "NullTokenizer",
        ),
        help="tokenizer class",
    )
    tokenizer_model: str | None = flag(
        "--tokenizer-model", default=None, help="sentencepiece / HF / tiktoken model path"
    )
    tiktoken_pattern: str | None = flag(
        "--tiktoken-pattern",
        default=None,
        choices=("v1", "v2"),
        help="how text is cut before encoding",
    )
    tiktoken_num_special_tokens: int = flag(
        "--tiktoken-num-special-tokens",
        default=1000,
        help="id offset reserved at the front",
        bounds="[0, inf)",
    )
    tiktoken_special_tokens: tuple[str, ...] | None = flag(
        "--tiktoken-special-tokens", default=None, nargs="+", help="must contain <unk>, <s>, </s>"
    )
    tokenizer_backend: str = flag(
        "--tokenizer-backend",
        default="auto",
        choices=("auto", "tiktoken", "tokenizers", "gigatoken"),
        help="library that runs GPT2BPETokenizer; the ids are the same",
    )

    def faults(self) -> Iterator[Fault]:
        """Files and settings that the chosen tokenizer lacks."""
        yield from value_faults(self)
        kind = self.tokenizer_type or DEFAULT_TOKENIZER
        for flag_name in TOKENIZER_NEEDS.get(kind, ()):
            if getattr(self, flag_name[2:].replace("-", "_")) is None:
                yield fault("MC0611", {"--tokenizer-type": kind}, more=flag_name, allowed=flag_name)
        special = self.tiktoken_special_tokens
        if special is not None:
            missing = [token for token in ("<unk>", "<s>", "</s>") if token not in special]
            if missing:
                given = {"--tiktoken-special-tokens": " ".join(special)}
                yield fault("MC0612", given, more="missing " + " ".join(missing))

    def resolved(self) -> TokenizerConfig:
        """A copy with the kind of tokenizer filled.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        return replace(self, tokenizer_type=self.tokenizer_type or DEFAULT_TOKENIZER)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset paths, splits, sequence length and loading."""

    GROUP: ClassVar[str] = "data"

    dataloader_type: str | None = flag(
        "--dataloader-type",
        default=None,
        choices=("single", "cyclic"),
        help="single pass, or cyclic with a shuffle per epoch; default single",
    )
    data_path: tuple[str, ...] | None = flag(
        "--data-path",
        default=None,
        nargs="*",
        help="one prefix, prefix list, or weight/prefix list, split by --split",
    )
    renormalize_blend_weights: bool = flag(
        "--renormalize-blend-weights", default=False, help="recompute weights from achieved sizes"
    )
    split: str | None = flag(
        "--split",
        default=None,
        help="proportions of training, validation and test; default '969, 30, 1' with --data-path",
    )
    train_data_path: tuple[str, ...] | None = flag(
        "--train-data-path", default=None, nargs="*", help="blend for training only"
    )
    valid_data_path: tuple[str, ...] | None = flag(
        "--valid-data-path", default=None, nargs="*", help="blend for validation"
    )
    test_data_path: tuple[str, ...] | None = flag(
        "--test-data-path", default=None, nargs="*", help="blend for test"
    )
    data_cache_path: str | None = flag(
        "--data-cache-path", default=None, help="where index caches live"
    )
    mmap_bin_files: bool = flag(
        "--no-mmap-bin-files", default=True, help="read .bin with ordinary file I/O"
    )
    mock_data: bool = flag("--mock-data", default=False, help="synthetic dataset")
    seq_length: int | None = flag(
        "--seq-length", default=None, help="tokens in a sequence; required", bounds="[1, inf)"
    )
    encoder_seq_length: int | None = flag(
        "--encoder-seq-length",
        default=None,
        help="other name of --seq-length; exclusive with it",
        bounds="[1, inf)",
    )
    num_workers: int = flag(
        "--num-workers", default=2, help="DataLoader workers", bounds="[0, inf)"
    )
    reset_position_ids: bool = flag(
        "--reset-position-ids", default=False, help="restart positions after EOD"
    )
    reset_attention_mask: bool = flag(
        "--reset-attention-mask", default=False, help="no attention across EOD"
    )
    eod_mask_loss: bool = flag("--eod-mask-loss", default=False, help="no loss where input is EOD")
    num_dataset_builder_threads: int = flag(
        "--num-dataset-builder-threads",
        default=1,
        help=">1 builds blend members in threads",
        bounds="[1, inf)",
    )
    data_sharding: bool = flag(
        "--no-data-sharding", default=True, help="cyclic sampler without per-rank bucket"
    )

    @property
    def length(self) -> int | None:
        """Tokens in a sequence, whichever of the two flags was given."""
        return self.seq_length if self.seq_length is not None else self.encoder_seq_length

    @property
    def per_split_paths(self) -> bool:
        """Whether paths are given for each split."""
        return any((self.train_data_path, self.valid_data_path, self.test_data_path))

    def faults(self) -> Iterator[Fault]:
        """Rules of data that these values break."""
        yield from value_faults(self)
        if self.length is None:
            yield required("--seq-length")
        if self.encoder_seq_length is not None and self.encoder_seq_length != self.length:
            given: dict[str, object] = {
                "--seq-length": self.seq_length,
                "--encoder-seq-length": self.encoder_seq_length,
            }
            yield fault("MC0602", given, allowed="one of them")
        sources = {
            "--data-path": bool(self.data_path),
            "--train-data-path and companions": self.per_split_paths,
            "--mock-data": self.mock_data,
        }
        if sum(sources.values()) != 1:
            given = {name: "" for name, there in sources.items() if there}
            yield fault("MC0601", given or {"data": "none"}, allowed=" | ".join(sources))
        for name, paths in (
            ("--data-path", self.data_path),
            ("--train-data-path", self.train_data_path),
            ("--valid-data-path", self.valid_data_path),
            ("--test-data-path", self.test_data_path),
        ):
            if paths and mixes_weights(paths):
                yield fault(
                    "MC0606", {name: " ".join(paths)}, allowed="WEIGHT PATH [...] | PATH ..."
                )
        yield from self._split_faults()

    def _split_faults(self) -> Iterator[Fault]:
        if self.split is None:
            return
        given = {"--split": self.split}
        if self.per_split_paths:
            yield fault("MC0605", given)
        numbers = re.findall(r"[.0-9]+", self.split)
        try:
            parts = [float(number) for number in numbers]
        except ValueError:
            parts = []
        if not 1 <= len(parts) <= 3 or sum(parts) <= 0 or re.search(r"(^|[,\s])\s*-", self.split):
            yield fault("MC0604", given, allowed="one to three numbers, not all 0")

    def resolved(self) -> DataConfig:
        """A copy with sequence length, split and kind of loader filled.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        split = self.split
        if split is None and self.data_path:
            split = DEFAULT_SPLIT
        return replace(
            self,
            seq_length=self.length,
            encoder_seq_length=self.length,
            split=split,
            dataloader_type=self.dataloader_type or "single",
        )


def mixes_weights(paths: Sequence[str]) -> bool:
    """Whether a list of an even number of words has weights at some of the places for them."""
    if len(paths) % 2:
        return False
    weights = sum(map(is_weight, paths[::2]))
    return 0 < weights < len(paths) // 2


def is_weight(word: str) -> bool:
    """Whether a word of a list of paths is a number instead."""
    try:
        float(word)
    except ValueError:
        return False
    return True

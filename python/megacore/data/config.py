"""Settings of datasets, samplers and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer, and its files."""

    GROUP: ClassVar[str] = "tokenizer"

    vocab_size: int | None = flag(
        "--vocab-size", default=None, help="size before padding (NullTokenizer)"
    )
    vocab_file: str | None = flag("--vocab-file", default=None, help="vocabulary file")
    merge_file: str | None = flag("--merge-file", default=None, help="BPE merges")
    vocab_extra_ids: int = flag("--vocab-extra-ids", default=0, help="sentinel tokens for T5")
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
    tiktoken_pattern: str | None = flag("--tiktoken-pattern", default=None, help="v1 or v2")
    tiktoken_num_special_tokens: int = flag(
        "--tiktoken-num-special-tokens", default=1000, help="id offset reserved at the front"
    )
    tiktoken_special_tokens: tuple[str, ...] | None = flag(
        "--tiktoken-special-tokens", default=None, nargs="+", help="must contain <unk>, <s>, </s>"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Dataset paths, splits, sequence length and loading."""

    GROUP: ClassVar[str] = "data"

    dataloader_type: str | None = flag(
        "--dataloader-type",
        default=None,
        choices=("single", "cyclic", "external"),
        help="single pass, cyclic (shuffling per epoch) or external iterator; None becomes single",
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
        "--split", default=None, help="proportions; default '969, 30, 1' when --data-path given"
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
        "--seq-length", default=None, help="sequence length; exclusive with --encoder-seq-length"
    )
    encoder_seq_length: int | None = flag(
        "--encoder-seq-length", default=None, help="encoder length"
    )
    num_workers: int = flag("--num-workers", default=2, help="DataLoader workers")
    reset_position_ids: bool = flag(
        "--reset-position-ids", default=False, help="restart positions after EOD"
    )
    reset_attention_mask: bool = flag(
        "--reset-attention-mask", default=False, help="no attention across EOD"
    )
    eod_mask_loss: bool = flag("--eod-mask-loss", default=False, help="no loss where input is EOD")
    create_attention_mask_in_dataloader: bool = flag(
        "--no-create-attention-mask-in-dataloader",
        default=True,
        help="dataset does not emit attention_mask",
    )
    num_dataset_builder_threads: int = flag(
        "--num-dataset-builder-threads", default=1, help=">1 builds blend members in threads"
    )
    data_sharding: bool = flag(
        "--no-data-sharding", default=True, help="cyclic sampler without per-rank bucket"
    )

"""Settings of `megacore generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to continue, how, and with which checkpoint."""

    GROUP: ClassVar[str] = "generate"

    load: str | None = flag("--load", default=None, help="checkpoint directory to read; required")
    ckpt_step: int | None = flag(
        "--ckpt-step",
        default=None,
        help="iteration to load instead of the newest",
        bounds="[0, inf)",
    )
    prompt: tuple[str, ...] = flag(
        "--prompt",
        default=(),
        nargs="+",
        repeatable=True,
        help="text to continue; may be repeated",
    )
    prompt_file: str | None = flag(
        "--prompt-file", default=None, help="file with one prompt per line; - reads standard input"
    )
    tokens_to_generate: int = flag(
        "--tokens-to-generate",
        default=64,
        help="most tokens added to each prompt",
        bounds="[0, inf)",
    )
    temperature: float = flag(
        "--temperature", default=1.0, help="logits are divided by it", bounds="(0, 100]"
    )
    top_k: int = flag(
        "--top-k",
        default=0,
        help="draw among the k most likely tokens; 0 no limit",
        bounds="[0, inf)",
    )
    top_p: float = flag(
        "--top-p",
        default=0.0,
        help="draw among the most likely tokens that together reach probability p; 0 no limit",
        bounds="[0, 1]",
    )
    greedy: bool = flag("--greedy", default=False, help="always take the most likely token")
    seed: int = flag("--seed", "--random-seed", default=1234, help="seed of the draws")
    stop: tuple[str, ...] = flag(
        "--stop",
        default=(),
        nargs="+",
        repeatable=True,
        help="text that ends a continuation; may be repeated",
    )
    stream: bool = flag(
        "--stream", default=False, help="print text as it is generated, one prompt after the other"
    )
    jsonl: bool = flag(
        "--jsonl", default=False, help="print one JSON object per prompt instead of text"
    )
    log_probs: bool = flag(
        "--log-probs", default=False, help="add the log probability of every token; needs --jsonl"
    )
    dtype: str = flag(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype of weights and activations; auto is the one trained with",
    )
    max_batch_size: int = flag(
        "--max-batch-size",
        default=32,
        help="prompts that are continued at the same time",
        bounds="[1, inf)",
    )
    vocab_file: str | None = flag(
        "--vocab-file", default=None, help="vocabulary file, if it is not where training had it"
    )
    merge_file: str | None = flag(
        "--merge-file", default=None, help="BPE merges, if they are not where training had them"
    )
    tokenizer_model: str | None = flag(
        "--tokenizer-model", default=None, help="tokenizer, if it is not where training had it"
    )

"""Settings of `megacore convert` and of tools/checkpoint/convert.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

FORMATS = ("hf", "core", "legacy")
_LAYOUT_FLAGS = (
    "--target-tensor-parallel-size",
    "--target-pipeline-parallel-size",
    "--target-num-virtual-stages",
    "--make-vocab-size-divisible-by",
    "--target-norms",
)
# Target format -> flags that only other formats have.
_NOT_FOR = {
    "hf": (*_LAYOUT_FLAGS, "--target-ckpt-format"),
    "core": ("--max-shard-size", "--family"),
    "legacy": ("--max-shard-size", "--family", "--target-ckpt-format"),
}


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert into what."""

    GROUP: ClassVar[str] = "conversion"

    paths: tuple[str, ...] | None = flag(
        "paths",
        default=None,
        nargs="*",
        help="SRC DST: model to read and directory to make, each with or without its format in "
        "front (hf:DIR, core:DIR, legacy:DIR, gguf:FILE, meta:DIR)",
    )
    to: str | None = flag(
        "--to",
        default=None,
        choices=FORMATS,
        help="format to write: Hugging Face, Megatron-Core (also what megacore trains from), or "
        "Megatron-LM's legacy models; default core, and hf for a source that is core or legacy",
    )
    loader: str | None = flag(
        "--from",
        default=None,
        choices=("hf", "core", "legacy", "gguf", "meta"),
        help="format to read; default: found out",
    )
    dtype: str | None = flag(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights; default as they are (quantised ones become float32)",
    )
    overwrite: bool = flag(
        "--overwrite", default=False, help="replace a checkpoint that is at DST already"
    )
    report: str | None = flag(
        "--report", default=None, help="file for the table of all tensors, as JSON"
    )
    verify: bool = flag(
        "--verify",
        default=False,
        help="compare the logits of both sides, and publish only what computes the same",
    )
    verify_prompt: str | None = flag(
        "--verify-prompt", default=None, help="text to verify with, for the model's tokenizer"
    )
    verify_tokens: tuple[int, ...] | None = flag(
        "--verify-tokens",
        default=None,
        nargs="+",
        help="token ids to verify with; default ids spread over the vocabulary",
        bounds="[0, inf)",
    )
    ckpt_step: int | None = flag(
        "--ckpt-step",
        default=None,
        help="iteration to read instead of the newest",
        bounds="[0, inf)",
    )
    true_vocab_size: int | None = flag(
        "--true-vocab-size",
        default=None,
        help="number of vocabulary rows that are not padding, when the source does not say it",
        bounds="[1, inf)",
    )
    tokenizer_model: str | None = flag(
        "--tokenizer-model",
        default=None,
        help="tokenizer to travel along instead of the source's: directory with tokenizer.json, "
        "SentencePiece model, or token ranks of Llama 3",
    )
    vocab_file: str | None = flag(
        "--vocab-file", default=None, help="vocabulary to travel along instead of the source's"
    )
    merge_file: str | None = flag(
        "--merge-file", default=None, help="BPE merges that go with --vocab-file"
    )
    target_tensor_parallel_size: int | None = flag(
        "--target-tensor-parallel-size",
        default=None,
        help="tensor-parallel size of the target; default that of the source, or 1",
        bounds="[1, inf)",
    )
    target_pipeline_parallel_size: int | None = flag(
        "--target-pipeline-parallel-size",
        default=None,
        help="pipeline stages of the target; default those of the source, or 1",
        bounds="[1, inf)",
    )
    target_num_virtual_stages: int | None = flag(
        "--target-num-virtual-stages",
        default=None,
        help="model chunks per pipeline stage of the target; default 1",
        bounds="[1, inf)",
    )
    target_expert_parallel_size: int = flag(
        "--target-expert-parallel-size",
        default=1,
        help="expert-parallel size of the target; only 1 until there are models with experts",
        bounds="[1, inf)",
    )
    make_vocab_size_divisible_by: int | None = flag(
        "--make-vocab-size-divisible-by",
        default=None,
        help="the target's vocabulary is padded to a multiple of this times the tensor-parallel "
        "size; default the setting of the source",
        bounds="[1, inf)",
    )
    target_ckpt_format: str | None = flag(
        "--target-ckpt-format",
        default=None,
        choices=("torch", "torch_dist"),
        help="files of a core target: torch_dist, which any layout reads, or torch; default "
        "torch_dist, and torch when a layout is asked for",
    )
    target_norms: str | None = flag(
        "--target-norms",
        default=None,
        choices=("fused", "local"),
        help="names of the norms of torch files: inside the projections behind them (Transformer "
        "Engine) or beside them (local)",
    )
    max_shard_size: float = flag(
        "--max-shard-size",
        default=5.0,
        help="largest file of a Hugging Face target, GB",
        bounds="(0, inf)",
    )
    family: str | None = flag(
        "--family",
        default=None,
        help="model_type of a Hugging Face target; default the source's, or one that fits",
    )

    @property
    def source(self) -> tuple[str | None, str]:
        """Format (None: to be found out) and path of the source."""
        named, path = split_prefix((self.paths or ("",))[0])
        return self.loader or named, path

    @property
    def destination(self) -> tuple[str | None, str]:
        """Format (None: by the source) and path of the target."""
        named, path = split_prefix((self.paths or ("", ""))[1])
        return self.to or named, path

    def faults(self) -> Iterator[Fault]:
        """Rules of conversion that these values break."""
        yield from value_faults(self)
        if self.paths is None or len(self.paths) < 2:
            yield required("SRC DST")
        elif len(self.paths) > 2:
            yield fault("MC0007", more=repr(self.paths[2]))
        if self.target_expert_parallel_size > 1:
            size = self.target_expert_parallel_size
            yield fault("MC1002", {"--target-expert-parallel-size": size}, allowed="1")
        if self.tokenizer_model is not None and self.vocab_file is not None:
            given = {"--tokenizer-model": self.tokenizer_model, "--vocab-file": self.vocab_file}
            yield fault("MC1007", given, allowed="one of them")
        if self.merge_file is not None and self.vocab_file is None:
            yield required("--vocab-file")
        prompts: dict[str, object] = {}
        if self.verify_prompt is not None:
            prompts["--verify-prompt"] = self.verify_prompt
        if self.verify_tokens is not None:
            prompts["--verify-tokens"] = " ".join(map(str, self.verify_tokens))
        if len(prompts) > 1:
            yield fault("MC1003", prompts, allowed="one of them")
        if prompts and not self.verify:
            yield fault("MC1004", prompts, allowed="--verify")
        if self.paths is not None and len(self.paths) == 2:
            yield from self.target_faults(self.destination[0])

    def target_faults(self, target: str | None) -> Iterator[Fault]:
        """Flags that a target format does not have.

        Args:
            target: The format, or None while it is not known.
        """
        for name in _NOT_FOR.get(target or "", ()):
            dest = name[2:].replace("-", "_")
            value = getattr(self, dest)
            if value != type(self).__dataclass_fields__[dest].default:
                yield fault("MC1005", {"--to": target, name: value})


def split_prefix(path: str) -> tuple[str | None, str]:
    """The format in front of a path, if there is one, and the path."""
    name, colon, rest = path.partition(":")
    known = {"mcore": "core", "megatron": "legacy", **{n: n for n in (*FORMATS, "gguf", "meta")}}
    return (known[name], rest) if colon and name in known else (None, path)

"""Settings of tools/checkpoint/convert.py: the flags of Megatron-LM's script.

There every loader and saver adds flags of its own to the parser; here all of them are known, and
those that the chosen loader and saver do not have are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

MODEL_SIZES = (
    "llama2-7B",
    "llama2-13B",
    "llama2-70B",
    "llama2-7Bf",
    "llama2-13Bf",
    "llama2-70Bf",
    "llama3-8B",
    "llama3-70B",
    "llama3-8Bf",
    "llama3-70Bf",
    "mistral-7B",
    "mistral-7Bf",
    "yi-34B",
)
_IMPLEMENTATIONS = ("local", "transformer_engine")
_MEGATRON = (
    "--true-vocab-size",
    "--vocab-file",
    "--megatron-path",
    "--position-embedding-type",
    "--loader-transformer-impl",
)
_LAYOUT = (
    "--megatron-path",
    "--target-tensor-parallel-size",
    "--target-pipeline-parallel-size",
    "--saver-transformer-impl",
)
LOADER_FLAGS: dict[str, tuple[str, ...]] = {
    "core": _MEGATRON,
    "legacy": _MEGATRON,
    "llama_mistral": (
        "--model-size",
        "--checkpoint-type",
        "--bf16",
        "--fp16",
        "--true-vocab-size",
        "--vocab-file",
        "--tokenizer-model",
        "--megatron-path",
        "--loader-transformer-impl",
    ),
    "mixtral_hf": ("--true-vocab-size", "--vocab-file", "--tokenizer-model", "--megatron-path"),
    "hf": ("--true-vocab-size", "--vocab-file", "--tokenizer-model", "--bf16", "--fp16"),
    "gguf": ("--true-vocab-size", "--vocab-file", "--tokenizer-model", "--bf16", "--fp16"),
}
SAVER_FLAGS: dict[str, tuple[str, ...]] = {
    "core": (*_LAYOUT, "--target-expert-parallel-size"),
    "legacy": _LAYOUT,
    "hf": (),
}
# Names of the reference's documentation -> names of its modules, which are accepted too.
_ALIASES = {"mcore": "core", "megatron": "legacy"}


@dataclass(frozen=True, kw_only=True)
class ConvertToolConfig:
    """What to convert into what, in Megatron-LM's words."""

    GROUP: ClassVar[str] = "conversion"

    model_type: str | None = flag(
        "--model-type", default=None, choices=("GPT", "BERT"), help="model family; required"
    )
    loader: str = flag(
        "--loader",
        default="megatron",
        choices=(*LOADER_FLAGS, *_ALIASES),
        help="format to read: core (or mcore), legacy (or megatron), llama_mistral, mixtral_hf, hf "
        "(any Hugging Face family), gguf",
    )
    saver: str = flag(
        "--saver",
        default="megatron",
        choices=(*SAVER_FLAGS, *_ALIASES),
        help="format to write: core (or mcore), legacy (or megatron), hf",
    )
    load_dir: str | None = flag("--load-dir", default=None, help="source checkpoint; required")
    save_dir: str | None = flag("--save-dir", default=None, help="directory to make; required")
    max_queue_size: int | None = flag(
        "--max-queue-size",
        default=None,
        help="accepted; there is no queue, one tensor at a time is in memory",
        bounds="[1, inf)",
    )
    checking: bool = flag(
        "--no-checking",
        default=True,
        help="leave out tensors that are not known, instead of refusing",
    )
    overwrite: bool = flag(
        "--overwrite", default=False, help="replace a checkpoint that is at --save-dir already"
    )
    report: str | None = flag(
        "--report", default=None, help="file for the table of all tensors, as JSON"
    )
    verify: bool = flag(
        "--verify",
        default=False,
        help="compare the logits of both sides, and publish only what computes the same",
    )
    true_vocab_size: int | None = flag(
        "--true-vocab-size",
        default=None,
        help="number of vocabulary rows that are not padding",
        bounds="[1, inf)",
    )
    vocab_file: str | None = flag(
        "--vocab-file", default=None, help="vocabulary whose number of entries is the true size"
    )
    megatron_path: str | None = flag(
        "--megatron-path", default=None, help="accepted; no code of Megatron-LM is needed"
    )
    position_embedding_type: str | None = flag(
        "--position-embedding-type",
        default=None,
        choices=("learned_absolute", "rope"),
        help="kind of positions, where the checkpoint does not say it",
    )
    loader_transformer_impl: str | None = flag(
        "--loader-transformer-impl",
        default=None,
        choices=_IMPLEMENTATIONS,
        help="accepted; which of the two it is is seen in the checkpoint",
    )
    model_size: str | None = flag(
        "--model-size",
        default=None,
        choices=MODEL_SIZES,
        help="required with llama_mistral; the sizes are read from the checkpoint all the same",
    )
    checkpoint_type: str | None = flag(
        "--checkpoint-type",
        default=None,
        choices=("meta", "hf"),
        help="layout of the files; required with llama_mistral",
    )
    bf16: bool = flag("--bf16", default=False, help="write bfloat16")
    fp16: bool = flag("--fp16", default=False, help="write float16")
    tokenizer_model: str | None = flag(
        "--tokenizer-model",
        default=None,
        help="tokenizer that travels along; required with llama_mistral and mixtral_hf",
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
    target_expert_parallel_size: int = flag(
        "--target-expert-parallel-size",
        default=1,
        help="expert-parallel size of the target; only 1 until there are models with experts",
        bounds="[1, inf)",
    )
    saver_transformer_impl: str | None = flag(
        "--saver-transformer-impl",
        default=None,
        choices=_IMPLEMENTATIONS,
        help="names of the norms; default transformer_engine for core, local for legacy",
    )

    @property
    def loader_name(self) -> str:
        """The loader, by the first of its names."""
        return _ALIASES.get(self.loader, self.loader)

    @property
    def saver_name(self) -> str:
        """The saver, by the first of its names."""
        return _ALIASES.get(self.saver, self.saver)

    def faults(self) -> Iterator[Fault]:
        """Rules of conversion that these values break."""
        yield from value_faults(self)
        for name in ("--model-type", "--load-dir", "--save-dir"):
            if not self._value(name):
                yield required(name)
        if self.loader_name == "mixtral_hf":
            yield fault("MC1002", {"--loader": self.loader}, more="a mixture of experts")
        if self.target_expert_parallel_size > 1:
            size = self.target_expert_parallel_size
            yield fault("MC1002", {"--target-expert-parallel-size": size}, allowed="1")
        if self.loader_name == "llama_mistral":
            for name in ("--model-size", "--checkpoint-type", "--tokenizer-model"):
                if self._value(name) is None:
                    yield required(name)
        if self.bf16 and self.fp16:
            yield fault("MC0501", {"--bf16": "", "--fp16": ""}, allowed="one of them")
        yield from self._strange_flags()

    def _strange_flags(self) -> Iterator[Fault]:
        loader, saver = LOADER_FLAGS.get(self.loader_name), SAVER_FLAGS.get(self.saver_name)
        if loader is None or saver is None:
            return  # not one of the choices, which is a fault of its own
        every = {*sum(LOADER_FLAGS.values(), ()), *sum(SAVER_FLAGS.values(), ())}
        for name in sorted(every - {*loader, *saver}):
            value = self._value(name)
            if value is not None and value != type(self).__dataclass_fields__[_dest(name)].default:
                given = {"--loader": self.loader, "--saver": self.saver, name: value}
                yield fault("MC1001", given, more=name)

    def _value(self, name: str) -> object:
        return getattr(self, _dest(name))


def _dest(name: str) -> str:
    return name[2:].replace("-", "_")

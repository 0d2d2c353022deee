"""Reading `config.json` so that nothing in it is overlooked.

Every value is taken by somebody who gives it a meaning, or is known to change nothing, or is
reported. What is wrong is collected and reported together.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from megacore.errors import CheckpointError

# Values that every configuration of transformers (4 and 5) may have and that change no logit:
# bookkeeping, heads for other tasks, defaults of generation.
HARMLESS = frozenset(
    [
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
        "vocab_size",
    ]
)
_HARMLESS_PATTERNS = ("_*", "*_version", "unsloth_*")

_REQUIRED = object()


class Values:
    """The values of one `config.json`, and which of them were taken.

    Attributes:
        remarks: What the user should know, a sentence each.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where
        self._taken: set[str] = set()
        self._faults: list[str] = []
        self.remarks: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value; null counts as not given when there is a default other than None.

        Args:
            name: Its key.
            default: What transformers takes when it is not there; without one it is required.
        """
        self._taken.add(name)
        value = self._values.get(name)
        if name not in self._values or (value is None and default is not None):
            if default is _REQUIRED:
                self.fault(f"{name} is missing")
                return None
            return default
        return value

    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """A whole number of at least 1."""
        value = self.take(name, default)
        if value is None:
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fault(f"{name} = {value!r} is not a whole number of at least 1")
            return None
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A number that is not negative, as a float."""
        value = self.take(name, default)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            self.fault(f"{name} = {value!r} is not a number of at least 0")
            return None
        return float(value)

    def switch(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.fault(f"{name} = {value!r} is neither true nor false")
            return default
        return value

    def only(self, name: str, allowed: Any) -> None:
        """A value that must be this one when it is there."""
        value = self.take(name, allowed)
        if value != allowed:
            self.fault(f"{name} = {value!r} cannot be converted, only {allowed!r}")

    def fault(self, text: str) -> None:
        """Notes what is wrong."""
        self._faults.append(text)

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Reports everything that is wrong, and every value that nobody took.

        Args:
            harmless: More names of values that change nothing.

        Raises:
            CheckpointError: There is something.
        """
        for name, value in self._values.items():
            # An option that is off is the same as one that does not exist.
            if name in self._taken | HARMLESS | harmless or value in (None, False, [], {}, ""):
                continue
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in _HARMLESS_PATTERNS):
                continue
            if name in ("quantization_config", "compression_config"):
                self.fault(f"{name}: quantised models cannot be converted, dequantise it first")
            else:
                self.fault(f"{name} = {_shown(value)} is not known, and might change the model")
        if self._faults:
            raise CheckpointError(
                f"{self._where} cannot be converted:\n  " + "\n  ".join(self._faults)
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

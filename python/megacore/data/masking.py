"""Settings of masked language models, and what masking needs to know about a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from megacore import _C
from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.data.config import DataConfig
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError, Fault


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How many tokens are masked, and how long samples are."""

    GROUP: ClassVar[str] = "masked language model"

    mask_prob: float = flag(
        "--mask-prob", default=0.15, help="share of the tokens that are masked", bounds="(0, 1)"
    )
    short_seq_prob: float = flag(
        "--short-seq-prob",
        default=0.1,
        help="share of the samples that have a random, shorter length",
        bounds="[0, 1]",
    )
    decoder_seq_length: int | None = flag(
        "--decoder-seq-length",
        default=None,
        help="tokens of the decoder's sequence (T5)",
        bounds="[1, inf)",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules that the values alone break."""
        yield from value_faults(self)


@dataclass(frozen=True)
class NgramRules:
    """How long the masked runs of words are.

    Attributes:
        longest: Words of the longest run.
        geometric: Lengths have a geometric distribution with p = 0.2; else 1/n.
    """

    longest: int
    geometric: bool

    def cumulative(self) -> list[float]:
        """Cumulative probabilities of the lengths 1, 2, ...; empty for the geometric rule.

        Summed and scaled in the order of numpy's RandomState.choice, to the last bit.
        """
        if self.geometric:
            return []
        shares = 1.0 / np.arange(1, self.longest + 1, dtype=np.float64)
        cdf = np.cumsum(shares / np.sum(shares))
        return (cdf / cdf[-1]).tolist()

    def identity(self, masking: MaskingConfig) -> dict[str, Any]:
        """What enters the identity of index files, in Megatron-LM's order."""
        return {
            "masking_probability": masking.mask_prob,
            "short_sequence_probability": masking.short_seq_prob,
            "masking_max_ngram": self.longest,
            "masking_do_full_word": True,
            "masking_do_permutation": False,
            "masking_use_longer_ngrams": False,
            "masking_use_geometric_distribution": self.geometric,
        }

    def build(
        self, masking: MaskingConfig, tokenizer: Tokenizer, *, keep_some: bool
    ) -> _C.data.MaskingRules:
        """The rules for the C++ routine.

        Args:
            masking: Share of the tokens.
            tokenizer: Says which tokens continue a word.
            keep_some: Some of the masked tokens stay, or become random ones.
        """
        return _C.data.MaskingRules(
            probability=masking.mask_prob,
            max_ngram=self.longest,
            ngram_cdf=self.cumulative(),
            keep_some=keep_some,
            cls=tokenizer.cls,
            sep=tokenizer.sep,
            mask=tokenizer.mask,
            continues_word=tokenizer.continues_word(),
        )


_SPECIAL = {
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "pad": "a padding token",
    "bos": "a beginning-of-sequence token",
    "eos": "an end-of-sequence token",
}


def check_vocabulary(tokenizer: Tokenizer, names: tuple[str, ...], *, model: str) -> None:
    """Refuses a vocabulary that lacks special tokens.

    Args:
        tokenizer: Its vocabulary.
        names: Of cls, sep, mask, pad, bos, eos.
        model: For the message.

    Raises:
        DataError: Names all that are missing.
    """
    missing = []
    for name in names:
        try:
            present = getattr(tokenizer, name) >= 0
        except DataError:
            present = False
        if not present:
            missing.append(_SPECIAL[name])
    if missing:
        kind = type(tokenizer).__name__
        raise DataError(
            f"the vocabulary of {kind} cannot be used for {model}: it has no "
            f"{', '.join(missing)}; take --tokenizer-type BertWordPieceLowerCase, "
            "BertWordPieceCase or SentencePieceTokenizer, and a dataset made with it"
        )


def sentence_faults(data: DataConfig) -> Iterator[Fault]:
    """Settings of documents that samples of sentences do not know."""
    given: dict[str, object] = {}
    for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
        if getattr(data, name):
            given["--" + name.replace("_", "-")] = ""
    if given:
        yield fault("MC1301", given, allowed="without it")

"""Samples for T5: a text with spans replaced by sentinels, and the spans to be written.

Masked are runs of up to ten words with geometrically distributed lengths (p = 0.2). In the
encoder's text each run becomes one sentinel `<extra_id_i>`; the decoder writes sentinel and run in
turn. Masking of a text ends early when its runs need more sentinels than there are, or more places
than the decoder has.
Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (2020), section 3.1.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore import _C
from megacore.config.faults import fault, required
from megacore.data.blended_dataset import BlendedDataset
from megacore.data.config import DataConfig, TokenizerConfig
from megacore.data.kinds import DatasetKind, Part
from megacore.data.masking import MaskingConfig, NgramRules, check_vocabulary, sentence_faults
from megacore.data.sentences import (
    Sentences,
    SentenceSamples,
    gather_batch,
    mock_sentences,
    open_sentences,
    sentence_config,
    span_map,
)
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError, Fault

NGRAMS = NgramRules(longest=10, geometric=True)
# Words of a run on average: the mean of min(geometric(0.2), 10).
_MEAN_RUN = (1.0 - 0.8**10) / 0.2
_SPECIAL_TOKENS = 2
_SHORTEST = _SPECIAL_TOKENS + 2


@dataclass(frozen=True)
class T5Batch:
    """One micro-batch of b texts, E tokens wide in the encoder and D in the decoder.

    Attributes:
        text_enc: int64 [b, E], the text with sentinels, and padding.
        text_dec: int64 [b, D], bos, then a sentinel and the tokens it stands for, in turn.
        labels: int64 [b, D], the tokens that follow, lastly eos; -1 behind.
        loss_mask: float32 [b, D], 1 where there is a label.
        enc_lengths: int32 [b], tokens of each text that are not padding.
        dec_lengths: int32 [b], the same of the decoder.
    """

    text_enc: Tensor
    text_dec: Tensor
    labels: Tensor
    loss_mask: Tensor
    enc_lengths: Tensor
    dec_lengths: Tensor


class T5Dataset(SentenceSamples):
    """Samples of T5; see `SentenceSamples`."""


@dataclass(frozen=True)
class T5Kind(DatasetKind[Sentences]):
    """Span corruption.

    Attributes:
        masking: Settings; the length of the decoder's sequence is needed.
    """

    masking: MaskingConfig

    class_name: ClassVar[str] = "T5MaskedWordPieceDataset"
    elements: ClassVar[str] = "documents"

    def faults(
        self, data: DataConfig, tokenizer: TokenizerConfig, *, max_positions: int | None = None
    ) -> Iterator[Fault]:
        """Rules between settings that can be told before anything is read."""
        yield from sentence_faults(data)
        length, decoder = data.length, self.masking.decoder_seq_length
        if decoder is None:
            yield required("--decoder-seq-length")
        given: dict[str, object] = {"--encoder-seq-length": length}
        if length is None:
            return
        if length < _SHORTEST:
            yield fault("MC1303", given, allowed=f"at least {_SHORTEST}")
        given["--mask-prob"] = self.masking.mask_prob
        masked, runs = self._expected(length)
        if tokenizer.vocab_extra_ids < runs:
            ids: dict[str, object] = {"--vocab-extra-ids": tokenizer.vocab_extra_ids}
            yield fault("MC1304", {**ids, **given}, allowed=f"at least {runs}, customary are 100")
        if decoder is not None and decoder < masked + runs + 1:
            more: dict[str, object] = {"--decoder-seq-length": decoder}
            yield fault("MC1305", {**more, **given}, allowed=f"at least {masked + runs + 1}")
        if decoder is not None and max_positions is not None and decoder > max_positions:
            more = {"--decoder-seq-length": decoder, "--max-position-embeddings": max_positions}
            yield fault("MC1306", more, allowed=f"at most {max_positions}")

    def _expected(self, length: int) -> tuple[int, int]:
        """Masked tokens of a text of full length, and runs that they are on average."""
        masked = self.masking.mask_prob * (length - _SPECIAL_TOKENS)
        return max(1, int(masked)), max(1, math.ceil(masked / _MEAN_RUN))

    def check(self, data: DataConfig, tokenizer: Tokenizer) -> None:
        """See `DatasetKind`."""
        check_vocabulary(tokenizer, ("cls", "sep", "mask", "pad", "bos", "eos"), model="T5")
        if not tokenizer.extra_ids:
            raise DataError("T5 needs sentinel tokens: give --vocab-extra-ids 100")

    def open(self, prefix: str, data: DataConfig) -> Sentences:
        """See `open_sentences`."""
        return open_sentences(prefix, data, min_sentences=1, model="T5")

    def mock(self, tokenizer: Tokenizer) -> Sentences:
        """See `mock_sentences`."""
        return mock_sentences(tokenizer.eos)

    def member(
        self, source: Sentences, part: Part, data: DataConfig, tokenizer: Tokenizer
    ) -> T5Dataset:
        """See `DatasetKind`."""
        length, decoder = data.seq_length, self.masking.decoder_seq_length
        assert length is not None
        assert decoder is not None
        part.identity.update(NGRAMS.identity(self.masking), sequence_length_decoder=decoder)
        sample_map = span_map(
            source,
            part,
            max_length=length - _SPECIAL_TOKENS,
            min_sentences=1,
            short_probability=self.masking.short_seq_prob,
        )
        reader = _C.data.T5Samples(
            source.source,
            sample_map,
            sentence_config(part, tokenizer, sequence_length=length),
            NGRAMS.build(self.masking, tokenizer, keep_some=False),
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            sentinels=tokenizer.extra_ids,
            decoder_length=decoder,
        )
        return T5Dataset(
            part,
            name=source.name,
            sequence_length=length,
            sample_map=sample_map,
            reader=reader,
            arrays={
                "text_enc": ((length,), torch.int64),
                "text_dec": ((decoder,), torch.int64),
                "labels": ((decoder,), torch.int64),
                "loss_mask": ((decoder,), torch.float32),
                "enc_lengths": ((), torch.int32),
                "dec_lengths": ((), torch.int32),
            },
        )


def make_t5_batch(
    dataset: T5Dataset | BlendedDataset, samples: NDArray[np.int64], *, vocab_size: int
) -> T5Batch:
    """The micro-batch of some samples.

    Args:
        dataset: Where they are.
        samples: int64 [b].
        vocab_size: Every token id must be smaller.

    Raises:
        DataError: An id is not in the vocabulary, or a file is damaged.
    """
    return T5Batch(**gather_batch(dataset, samples, vocab_size=vocab_size))

"""Samples for BERT: two parts of a document in either order, with masked words.

A sample is [CLS] A [SEP] B [SEP] out of consecutive sentences. In half of the samples A and B are
swapped, which the sentence-order head has to tell. Masked are whole words and runs of up to three;
of the masked tokens 80 % become [MASK], 10 % a random token, 10 % stay.
Sources: Devlin et al., "BERT" (2019); Lan et al., "ALBERT" (2020), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore import _C
from megacore.config.faults import fault
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
from megacore.errors import Fault

NGRAMS = NgramRules(longest=3, geometric=False)
_SPECIAL_TOKENS = 3
# The mapping needs room for two tokens.
_SHORTEST = _SPECIAL_TOKENS + 2


@dataclass(frozen=True)
class BertBatch:
    """One micro-batch of b sequences of S tokens.

    Attributes:
        text: int64 [b, S], [CLS] A [SEP] B [SEP] with masked tokens, and padding.
        types: int64 [b, S], 0 for [CLS] A [SEP] and padding, 1 for B [SEP].
        labels: int64 [b, S], the original token where it is masked, -1 elsewhere.
        loss_mask: float32 [b, S], 1 where a token is masked.
        is_random: int64 [b], 1 where A and B are swapped; 0 without a sentence-order head.
        lengths: int32 [b], tokens of each row that are not padding.
    """

    text: Tensor
    types: Tensor
    labels: Tensor
    loss_mask: Tensor
    is_random: Tensor
    lengths: Tensor

    @property
    def padding_mask(self) -> Tensor:
        """int64 [b, S], 1 for tokens and 0 for padding."""
        columns = torch.arange(self.text.shape[1], device=self.lengths.device)
        return (columns < self.lengths[:, None]).long()


class BertDataset(SentenceSamples):
    """Samples of BERT; see `SentenceSamples`."""


@dataclass(frozen=True)
class BertKind(DatasetKind[Sentences]):
    """Masked language model and order of sentences.

    Attributes:
        masking: Settings.
        binary_head: Whether a sample has two parts whose order is to be told.
    """

    masking: MaskingConfig
    binary_head: bool = True

    class_name: ClassVar[str] = "BERTMaskedWordPieceDataset"
    elements: ClassVar[str] = "documents"

    @property
    def min_sentences(self) -> int:
        """Sentences that a sample needs."""
        return 2 if self.binary_head else 1

    def faults(
        self, data: DataConfig, tokenizer: TokenizerConfig, *, max_positions: int | None = None
    ) -> Iterator[Fault]:
        """Rules between settings that can be told before anything is read."""
        yield from sentence_faults(data)
        if self.masking.decoder_seq_length is not None:
            given: dict[str, object] = {"--decoder-seq-length": self.masking.decoder_seq_length}
            yield fault("MC1302", given, allowed="an encoder-decoder model (pretrain_t5.py)")
        if data.length is not None and data.length < _SHORTEST:
            yield fault("MC1303", {"--seq-length": data.length}, allowed=f"at least {_SHORTEST}")

    def check(self, data: DataConfig, tokenizer: Tokenizer) -> None:
        """See `DatasetKind`."""
        check_vocabulary(tokenizer, ("cls", "sep", "mask", "pad"), model="BERT")

    def open(self, prefix: str, data: DataConfig) -> Sentences:
        """See `open_sentences`."""
        return open_sentences(prefix, data, min_sentences=self.min_sentences, model="BERT")

    def mock(self, tokenizer: Tokenizer) -> Sentences:
        """See `mock_sentences`."""
        return mock_sentences(tokenizer.sep)

    def member(
        self, source: Sentences, part: Part, data: DataConfig, tokenizer: Tokenizer
    ) -> BertDataset:
        """See `DatasetKind`."""
        assert data.seq_length is not None
        part.identity.update(NGRAMS.identity(self.masking), classification_head=self.binary_head)
        sample_map = span_map(
            source,
            part,
            max_length=data.seq_length - _SPECIAL_TOKENS,
            min_sentences=self.min_sentences,
            short_probability=self.masking.short_seq_prob,
        )
        reader = _C.data.BertSamples(
            source.source,
            sample_map,
            sentence_config(part, tokenizer, sequence_length=data.seq_length),
            NGRAMS.build(self.masking, tokenizer, keep_some=True),
            two_parts=self.binary_head,
        )
        row = (data.seq_length,)
        return BertDataset(
            part,
            name=source.name,
            sequence_length=data.seq_length,
            sample_map=sample_map,
            reader=reader,
            arrays={
                "text": (row, torch.int64),
                "types": (row, torch.int64),
                "labels": (row, torch.int64),
                "loss_mask": (row, torch.float32),
                "is_random": ((), torch.int64),
                "lengths": ((), torch.int32),
            },
        )


def make_bert_batch(
    dataset: BertDataset | BlendedDataset, samples: NDArray[np.int64], *, vocab_size: int
) -> BertBatch:
    """The micro-batch of some samples.

    Args:
        dataset: Where they are.
        samples: int64 [b].
        vocab_size: Every token id must be smaller.

    Raises:
        DataError: An id is not in the vocabulary, or a file is damaged.
    """
    return BertBatch(**gather_batch(dataset, samples, vocab_size=vocab_size))

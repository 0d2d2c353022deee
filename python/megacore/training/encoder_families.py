"""BERT and T5 as the training loop knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megacore.data.bert_dataset import BertBatch, BertKind, make_bert_batch
from megacore.data.kinds import DatasetKind
from megacore.data.t5_dataset import T5Batch, T5Kind, make_t5_batch
from megacore.models.bert import BertModel, BertOutput
from megacore.models.staged import StagedModel
from megacore.models.t5 import T5Model
from megacore.parallel.apply import MakeModel
from megacore.training.family import LM_LOSS, Family, wide
from megacore.training.flops import EncoderDecoderShape, ModelShape
from megacore.training.run_config import RunConfig

ORDER_LOSS = "sop loss"


@dataclass(frozen=True)
class BertInputs:
    """One micro-batch of b rows of S tokens, n of which are masked.

    Attributes:
        tokens: int64 [b, S], padded.
        types: int64 [b, S], the segment of each token.
        lengths: int32 [b], real tokens of each row; stays on the host.
        masked: int64 [n], places of the masked tokens in the flattened batch.
        labels: int64 [n], the tokens that were there.
        order: int64 [b], 1 where the two segments were swapped.
    """

    tokens: Tensor
    types: Tensor
    lengths: Tensor
    masked: Tensor
    labels: Tensor
    order: Tensor

    @classmethod
    def of(cls, batch: BertBatch) -> BertInputs:
        """What the model needs of a batch of the data."""
        masked = batch.loss_mask.flatten().nonzero().flatten()
        return cls(
            tokens=batch.text,
            types=batch.types,
            lengths=batch.lengths,
            masked=masked,
            labels=batch.labels.flatten()[masked],
            order=batch.is_random,
        )


class BertFamily(Family[BertInputs]):
    """Encoders with masked tokens and, with the binary head, the order of two segments.

    Only the logits of masked tokens are computed.

    Args:
        run: Resolved settings.
    """

    host_tensors: ClassVar[frozenset[str]] = frozenset({"lengths"})

    def __init__(self, run: RunConfig) -> None:
        self._has_order = run.model.bert_binary_head
        if self._has_order:
            self.loss_names = (LM_LOSS, ORDER_LOSS)
            self.num_trained = 2

    @property
    def make_model(self) -> MakeModel:
        """Makes a BERT."""
        return BertModel

    def dataset_kind(self, run: RunConfig) -> DatasetKind[Any]:
        """See `Family`."""
        return BertKind(run.masking, binary_head=self._has_order)

    def make_batch(
        self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int
    ) -> BertInputs:
        """See `Family`."""
        return BertInputs.of(make_bert_batch(dataset, samples, vocab_size=vocab_size))

    def counts(self, batch: BertInputs) -> tuple[float, ...]:
        """Masked tokens, and rows."""
        tokens, rows = float(batch.masked.numel()), float(batch.order.numel())
        return (tokens, rows) if self._has_order else (tokens,)

    def losses(
        self, model: StagedModel, batch: BertInputs, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Sums of the losses of the masked tokens, and of the order of each row."""
        output: BertOutput | Tensor = model(
            batch.tokens,
            batch.lengths,
            types=batch.types if self._has_order else None,
            chosen=batch.masked,
            labels=batch.labels,
            hidden=hidden,
        )
        if isinstance(output, Tensor):
            return output
        tokens = output.tokens.sum()
        if output.order is None:
            return (tokens,)
        return tokens, F.cross_entropy(wide(output.order), batch.order, reduction="sum")


class T5Family(Family[T5Batch]):
    """Encoder-decoders that restore the spans that were taken out of a text.

    Args:
        run: Resolved settings.
    """

    host_tensors: ClassVar[frozenset[str]] = frozenset({"enc_lengths", "dec_lengths"})

    def __init__(self, run: RunConfig) -> None:
        self._decoder_length = run.masking.decoder_seq_length or 0

    @property
    def make_model(self) -> MakeModel:
        """Makes a T5."""
        return T5Model

    def dataset_kind(self, run: RunConfig) -> DatasetKind[Any]:
        """See `Family`."""
        return T5Kind(run.masking)

    def make_batch(self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int) -> T5Batch:
        """See `Family`."""
        return make_t5_batch(dataset, samples, vocab_size=vocab_size)

    def counts(self, batch: T5Batch) -> tuple[float, ...]:
        """Real tokens of the decoder."""
        return (float(batch.loss_mask.sum(dtype=torch.float64)),)

    def losses(
        self, model: StagedModel, batch: T5Batch, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Sum of the losses of the real tokens of the decoder."""
        output: Tensor = model(
            batch.text_enc,
            batch.text_dec,
            batch.enc_lengths,
            # Padding has label -1, and a loss that does not count.
            labels=batch.labels.clamp_min(0),
            hidden=hidden,
        )
        return ((output * batch.loss_mask).sum(),) if model.has_end else output

    def stage_length(self, run: RunConfig) -> int:
        """Tokens of encoder and decoder together."""
        return (run.data.seq_length or 0) + self._decoder_length

    def shape(self, run: RunConfig, *, padded_vocab: int) -> ModelShape:
        """Sizes of both stacks."""
        encoder = super().shape(run, padded_vocab=padded_vocab)
        return EncoderDecoderShape(
            **{**vars(encoder), "bidirectional": True},
            decoder_layers=run.model.decoder_num_layers or encoder.layers,
            decoder_length=self._decoder_length,
        )

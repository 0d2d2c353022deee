"""BERT and T5 on made-up batches, which need no tokenizer with special tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore.data.t5_dataset import T5Batch
from megacore.training.encoder_families import BertFamily, BertInputs, T5Family
from megacore.training.family import SplitSamples
from megacore.training.run_config import RunConfig


class MadeUp:
    """So many samples."""

    name = "made up"

    def __init__(self, count: int, run: RunConfig) -> None:
        self.count = count
        self.vocabulary = run.tokenizer.vocab_size or 0
        self.length = run.data.seq_length or 0
        self.decoded = run.masking.decoder_seq_length or 0

    def __len__(self) -> int:
        return self.count

    def draw(self, sample: int) -> torch.Generator:
        """The random numbers of a sample."""
        return torch.Generator().manual_seed(1000 + sample)

    def tokens(self, draw: torch.Generator, length: int) -> tuple[Tensor, int]:
        """A sequence that counts upwards from 0 or 1, and how much of it is real."""
        real = int(torch.randint(length // 2, length + 1, (), generator=draw))
        first = int(torch.randint(0, 2, (), generator=draw))
        return (first + torch.arange(length)) % self.vocabulary, real


def _splits(run: RunConfig, wanted: tuple[int | None, ...]) -> SplitSamples:
    return SplitSamples(*(None if count is None else MadeUp(count, run) for count in wanted))


class MadeUpBert(BertFamily):
    """A BERT with made-up batches."""

    def open_datasets(self, run: RunConfig, tokenizer: Any, *, wanted: Any, **_: Any) -> Any:
        """As many samples as are wanted."""
        return _splits(run, wanted)

    def make_batch(
        self, dataset: MadeUp, samples: NDArray[np.int64], *, vocab_size: int
    ) -> BertInputs:
        """Rows that count upwards, of which some tokens are hidden."""
        rows, types, lengths, masked, labels, order = [], [], [], [], [], []
        for number, sample in enumerate(samples.tolist()):
            draw = dataset.draw(sample)
            tokens, real = dataset.tokens(draw, dataset.length)
            hidden = torch.rand(real, generator=draw) < 0.3
            hidden[1] = True
            places = hidden.nonzero().flatten()
            masked.append(places + number * dataset.length)
            labels.append(tokens[places])
            rows.append(tokens.index_fill(0, places, 0))
            types.append((torch.arange(dataset.length) > real // 2).long())
            lengths.append(real)
            order.append(int(torch.randint(0, 2, (), generator=draw)))
        return BertInputs(
            tokens=torch.stack(rows),
            types=torch.stack(types),
            lengths=torch.tensor(lengths, dtype=torch.int32),
            masked=torch.cat(masked),
            labels=torch.cat(labels),
            order=torch.tensor(order),
        )


class MadeUpT5(T5Family):
    """A T5 with made-up batches."""

    def open_datasets(self, run: RunConfig, tokenizer: Any, *, wanted: Any, **_: Any) -> Any:
        """As many samples as are wanted."""
        return _splits(run, wanted)

    def make_batch(
        self, dataset: MadeUp, samples: NDArray[np.int64], *, vocab_size: int
    ) -> T5Batch:
        """Rows that count upwards; the decoder is to go on counting."""
        encoded, decoded, labels, lengths, counts = [], [], [], [], []
        for sample in samples.tolist():
            draw = dataset.draw(sample)
            tokens, real = dataset.tokens(draw, dataset.length)
            answer, count = dataset.tokens(draw, dataset.decoded)
            encoded.append(tokens)
            decoded.append(answer)
            labels.append(
                ((answer + 1) % dataset.vocabulary).index_fill(
                    0, torch.arange(count, dataset.decoded), -1
                )
            )
            lengths.append(real)
            counts.append(count)
        stacked = torch.stack(labels)
        return T5Batch(
            text_enc=torch.stack(encoded),
            text_dec=torch.stack(decoded),
            labels=stacked,
            loss_mask=(stacked >= 0).float(),
            enc_lengths=torch.tensor(lengths, dtype=torch.int32),
            dec_lengths=torch.tensor(counts, dtype=torch.int32),
        )

"""Examples in the order in which a model meets them, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError
from megacore.evaluation.examples import Example
from megacore.evaluation.pairs import SpecialTokens, write_pair

# Of a question with its answer; the rest of the sequence is for the article.
MAX_QUESTION_TOKENS = 128


@dataclass(frozen=True)
class TaskBatch:
    """A micro-batch of b examples with k alternatives each.

    Attributes:
        tokens: int64 [b * k, S], padded behind the end.
        types: int64 [b * k, S], 0 for text A and 1 for text B.
        lengths: int32 [b * k], tokens before the padding.
        labels: int64 [b], the right class or alternative.
        weights: float32 [b], 1; 0 for a row that only fills up the batch.
    """

    tokens: Tensor
    types: Tensor
    lengths: Tensor
    labels: Tensor
    weights: Tensor


class TaskSamples:
    """Examples in a fixed order, each as often as there are epochs.

    Args:
        examples: At least one.
        name: What messages call it.
        num_samples: Length; where it is more than the epochs have, they go on.
        batch_size: Samples of one step.
        seed: The order of epoch e is `torch.randperm` seeded with seed + e; None: as they come.
        keep_last: Every epoch ends with a batch that is filled up with nothing, instead of leaving
            out the examples that do not fill a batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        name: str,
        num_samples: int,
        batch_size: int,
        seed: int | None = None,
        keep_last: bool = False,
    ) -> None:
        self._examples = examples
        self._name = name
        self._num_samples = num_samples
        self._per_epoch = samples_per_epoch(len(examples), batch_size, keep_last=keep_last)
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._order_of)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._name

    def __len__(self) -> int:
        return self._num_samples

    def example(self, index: int) -> Example | None:
        """The example that is met at a place, or None where there is nothing."""
        epoch, place = divmod(index, self._per_epoch)
        if place >= len(self._examples):
            return None
        return self._examples[int(self._order(epoch)[place])]

    def _order_of(self, epoch: int) -> Tensor:
        count = len(self._examples)
        if self._seed is None:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self._seed + epoch)
        return torch.randperm(count, generator=generator)


def samples_per_epoch(num_examples: int, batch_size: int, *, keep_last: bool) -> int:
    """Samples of whole batches that an epoch has; with `keep_last` some of them are nothing."""
    whole = num_examples // batch_size
    if keep_last and num_examples % batch_size:
        whole += 1
    return whole * batch_size


class BatchMaker:
    """Makes micro-batches of examples.

    Args:
        tokenizer: One with [CLS] and [SEP].
        seq_length: S.
        num_alternatives: k.

    Raises:
        DataError: The vocabulary lacks them.
    """

    def __init__(self, tokenizer: Tokenizer, *, seq_length: int, num_alternatives: int) -> None:
        self._tokenizer = tokenizer
        self._special = SpecialTokens.of(tokenizer)
        self._seq_length = seq_length
        self._num_alternatives = num_alternatives

    def __call__(
        self, dataset: TaskSamples, samples: NDArray[np.int64], *, vocab_size: int
    ) -> TaskBatch:
        """The micro-batch of some samples [b].

        Raises:
            DataError: An id is not in the vocabulary of `vocab_size` rows.
        """
        rows = len(samples) * self._num_alternatives
        tokens = np.full((rows, self._seq_length), self._special.pad, dtype=np.int64)
        types = np.zeros_like(tokens)
        # A row that only fills up has one token, so that attention has something to look at.
        lengths = np.ones(rows, dtype=np.int32)
        labels = np.zeros(len(samples), dtype=np.int64)
        weights = np.zeros(len(samples), dtype=np.float32)
        for place, index in enumerate(samples.tolist()):
            example = dataset.example(index)
            if example is None:
                continue
            first = place * self._num_alternatives
            self._fill(example, tokens[first:], types[first:], lengths[first:])
            labels[place], weights[place] = max(example.label, 0), 1.0
        if tokens.max() >= vocab_size:
            raise DataError(
                f"{dataset.name}: token id {tokens.max()} is not in the vocabulary of {vocab_size}"
            )
        arrays = (tokens, types, lengths, labels, weights)
        return TaskBatch(*map(torch.from_numpy, arrays))

    def _fill(
        self,
        example: Example,
        tokens: NDArray[np.int64],
        types: NDArray[np.int64],
        lengths: NDArray[np.int32],
    ) -> None:
        *firsts, second = self._tokenizer.tokenize_batch([*example.firsts, example.second])
        several = self._num_alternatives > 1
        for row, ids in enumerate(firsts):
            first = ids[:MAX_QUESTION_TOKENS] if several else ids
            lengths[row] = write_pair(
                first, second, self._special, tokens=tokens[row], types=types[row]
            )

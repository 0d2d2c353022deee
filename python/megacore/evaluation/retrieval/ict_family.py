"""The inverse cloze task: which block of text does a sentence come from (Lee et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megacore.data.ict_config import IctConfig
from megacore.data.ict_dataset import IctBatch, IctKind, make_ict_batch
from megacore.data.kinds import DatasetKind
from megacore.evaluation.retrieval.config import BiencoderConfig
from megacore.models.biencoder import BiencoderModel
from megacore.models.staged import StagedModel
from megacore.parallel.apply import MakeModel
from megacore.parallel.groups import Group, single_process_groups
from megacore.training.family import LM_LOSS, Family
from megacore.training.run_config import RunConfig


class IctFamily(Family[IctBatch]):
    """Two encoders that learn from the other blocks of the batch, those of all replicas.

    The loss of a sentence is the negative log probability of its own block under a softmax over
    the inner products with all blocks. Accuracies are percentages.

    Args:
        ict: Settings of the data.
        biencoder: Settings of the model.
        top: For which k the share of sentences is reported whose block is among the best k.
    """

    host_tensors: ClassVar[frozenset[str]] = frozenset({"query_lengths", "context_lengths"})

    def __init__(self, ict: IctConfig, biencoder: BiencoderConfig, *, top: Sequence[int]) -> None:
        self._ict = ict
        self._biencoder = biencoder
        self._top = sorted(set(top))
        self.loss_names = (LM_LOSS, *(f"top{k}_acc" for k in self._top))
        self._replicas = single_process_groups().dp

    def share(self, replicas: Group) -> None:
        """Name the processes whose blocks are compared with each other."""
        self._replicas = replicas

    @property
    def make_model(self) -> MakeModel:
        """Makes two encoders, or one for both."""
        return partial(
            BiencoderModel,
            projection=self._biencoder.biencoder_projection_dim,
            shared=self._biencoder.biencoder_shared_query_context_model,
        )

    def dataset_kind(self, run: RunConfig) -> DatasetKind[Any]:
        """See `Family`."""
        return IctKind(self._ict)

    def make_batch(self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int) -> IctBatch:
        """See `Family`."""
        return make_ict_batch(dataset, samples, vocab_size=vocab_size)

    def counts(self, batch: IctBatch) -> tuple[float, ...]:
        """Sentences, for the loss and each accuracy."""
        return (float(len(batch.query_tokens)),) * len(self.loss_names)

    def losses(
        self, model: StagedModel, batch: IctBatch, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Sum of the losses of this replica's sentences, and of the hits in percent."""
        query, context = model(
            batch.query_tokens, batch.query_lengths, batch.context_tokens, batch.context_lengths
        )
        contexts = _Gathered.apply(context, self._replicas)
        scores = query @ contexts.T
        if self._biencoder.retriever_score_scaling:
            scores = scores / math.sqrt(model.spec.hidden_size)
        own = torch.arange(len(query), device=query.device) + self._replicas.rank * len(query)
        loss = F.cross_entropy(scores, own, reduction="sum")
        # Place of the own block among all, counted from 0.
        place = (scores > scores.gather(1, own[:, None])).sum(1)
        hits = [100.0 * (place < k).float().sum() for k in self._top]
        return (loss, *hits)


class _Gathered(torch.autograd.Function):
    """Rows of all replicas; a row's gradient is the sum of what all replicas make of it.

    Each replica's loss is that of its own sentences, so that the mean over replicas, which the
    gradients are averaged to, is the mean over all sentences.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.count = group, len(rows)
        if group.size == 1:
            return rows.view_as(rows)
        out = rows.new_empty(len(rows) * group.size, *rows.shape[1:])
        group.all_gather(out, rows.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.group.size > 1:
            grad = grad.contiguous()
            ctx.group.all_reduce(grad)
        first = ctx.group.rank * ctx.count
        return grad[first : first + ctx.count], None

"""Forward and backward of the micro-batches of one step through the stages of this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megacore.data import Batch
from megacore.models.gpt import GPTModel
from megacore.parallel.groups import ParallelGroups
from megacore.training.agreement import summed
from megacore.training.feed import Cut, Feed, token_loss_sum
from megacore.training.learner import Learner
from megacore.training.profiling import Profiler
from megacore.training.timers import Timers


@dataclass(frozen=True)
class Kept:
    """A micro-batch and the random state before it, for tracing."""

    batch: Batch
    cpu_state: Tensor
    cuda_state: Tensor | None


@dataclass(frozen=True)
class PassResult:
    """What one pass gave.

    Attributes:
        loss_sums: Sum of the token losses of each micro-batch, of this process's part of the
            sequences; empty where this process has no output layer.
        loss_sum: Their sum over all micro-batches, sequences and replicas of the run.
        num_tokens: Tokens of the whole run that count in it.
        num_microbatches: Micro-batches of each replica.
        kept: What is needed to run a micro-batch again, when that was asked for.
    """

    loss_sums: Sequence[float]
    loss_sum: float
    num_tokens: float
    num_microbatches: int
    kept: Sequence[Kept] = ()

    @property
    def mean_loss(self) -> float:
        """Loss per token; 0 when none counts."""
        return self.loss_sum / max(self.num_tokens, 1.0)


class Passes:
    """Runs micro-batches through the stages of this process.

    Args:
        learner: The stages, and their optimizer.
        groups: The groups of this process.
        device: Where the stages are.
        timers: Timers of the run.
        profiler: Names the parts of the pass.
        per_token_loss: The gradient is that of the sum over all tokens, to be divided by their
            number later; otherwise that of the mean over micro-batches of their means.
        cut: Takes this process's part of the sequences; None: all of them.
        keep: Keep what is needed to run a micro-batch again.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        groups: ParallelGroups,
        device: torch.device,
        timers: Timers,
        profiler: Profiler,
        per_token_loss: bool,
        cut: Cut | None = None,
        keep: bool = False,
    ) -> None:
        self._learner = learner
        self._groups = groups
        self._device = device
        self._timers = timers
        self._profiler = profiler
        self._per_token_loss = per_token_loss
        self._cut = cut
        self._keep = keep

    def train(self, source: Iterator[Batch], num_microbatches: int) -> PassResult:
        """Adds the gradients of the next micro-batches to the sums of the optimizer.

        Raises:
            DataError: The source has no more micro-batches.
        """
        optimizer = self._learner.optimizer
        run = self._begin(source, num_microbatches, keep=self._keep)
        (stage,) = run.stages.values()
        for index in range(num_microbatches):
            loss = stage(index, None)
            if index == num_microbatches - 1:
                optimizer.last_microbatch(0)
            with self._timers.time("backward-compute"), self._profiler.range("backward"):
                optimizer.backward(loss)
        return self._result(run)

    @torch.no_grad()
    def evaluate(self, source: Iterator[Batch], num_microbatches: int) -> PassResult:
        """The losses of the next micro-batches; no random number is drawn.

        Raises:
            DataError: The source has no more micro-batches.
        """
        self._learner.model.train(False)
        try:
            run = self._begin(source, num_microbatches)
            (stage,) = run.stages.values()
            for index in range(num_microbatches):
                stage(index, None)
        finally:
            self._learner.model.train()
        return self._result(run)

    def _begin(self, source: Iterator[Batch], num_microbatches: int, *, keep: bool = False) -> _Run:
        models = self._learner.model.stages
        feed = Feed(source, device=self._device, num_uses=len(models), cut=self._cut)
        run = _Run(feed)
        for number, model in models.items():
            run.stages[number] = _StagePass(
                model,
                run=run,
                parts=None if self._per_token_loss else num_microbatches / self._groups.cp.size,
                timers=self._timers,
                profiler=self._profiler,
                keep=keep,
            )
        return run

    def _result(self, run: _Run) -> PassResult:
        sums: list[float] = []
        if run.loss_sums:
            sums = torch.stack(list(run.loss_sums.values())).double().tolist()
        # Tensor-parallel processes have the same losses, and all processes of a replica read the
        # same tokens: each is counted once.
        groups = self._groups
        first = groups.tp.is_first
        speaks_for_replica = first and groups.cp.is_first and groups.pp.is_first
        own = [sum(sums) if first else 0.0, run.feed.num_tokens if speaks_for_replica else 0.0]
        loss_sum, num_tokens = summed(own, groups.world, self._device)
        return PassResult(sums, loss_sum, num_tokens, run.feed.num_read, run.kept)


@dataclass
class _Run:
    """What the stages of one pass share."""

    feed: Feed
    stages: dict[int, _StagePass] = field(default_factory=dict)
    loss_sums: dict[int, Tensor] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)


class _StagePass:
    """One stage during one pass: from the number of a micro-batch and the output of the stage
    before to the output, or to the loss whose gradient is wanted.

    Args:
        model: The part of the model.
        run: What the stages share.
        parts: The mean loss of a micro-batch is divided by it: the number of micro-batches. With
            context parallelism each process has a part of a loss, and the gradients of the parts
            are averaged like those of replicas although they belong together; so it is divided
            by their number less. None: the sum of the token losses is wanted.
        timers: Timers of the run.
        profiler: Names the parts of the pass.
        keep: Keep what is needed to run a micro-batch again.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        run: _Run,
        parts: float | None,
        timers: Timers,
        profiler: Profiler,
        keep: bool,
    ) -> None:
        self._model = model
        self._run = run
        self._parts = parts
        self._timers = timers
        self._profiler = profiler
        self._keep = keep

    def __call__(self, index: int, hidden: Tensor | None) -> Tensor:
        with self._timers.time("batch-generator"), self._profiler.range("data"):
            microbatch = self._run.feed.take(index)
        batch = microbatch.batch
        if self._keep:
            self._run.kept.append(_keep(batch))
        with self._timers.time("forward-compute"), self._profiler.range("forward"):
            output = token_loss_sum(self._model, batch, hidden)
        if self._model.output_layer is None:
            return output
        self._run.loss_sums[index] = output.detach()
        if self._parts is None:
            return output
        # A micro-batch whose tokens are all masked has no loss and no gradient, not 0/0.
        return output / (max(microbatch.tokens, 1.0) * self._parts)


def _keep(batch: Batch) -> Kept:
    device = batch.tokens.device
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Kept(batch, torch.get_rng_state(), cuda_state)

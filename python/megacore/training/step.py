"""One training iteration: micro-batches, gradient accumulation, update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore.errors import MegacoreError
from megacore.optim import Rates
from megacore.parallel.groups import ParallelGroups
from megacore.training.agreement import gathered, gathered_texts
from megacore.training.family import LM_LOSS, Family, mean_sum
from megacore.training.learner import Learner
from megacore.training.nan_trace import find_non_finite
from megacore.training.passes import Kept, Passes, PassResult
from megacore.training.profiling import Profiler
from megacore.training.seeding import torch_rng_preserved
from megacore.training.timers import Timers


class NonFiniteError(MegacoreError):
    """The loss or the gradient is NaN or infinite and checking is on."""

    is_common = True


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one iteration did.

    Attributes:
        losses: Loss name -> its sum over all micro-batches / number of things that it is of.
        updated: False when the update was skipped because a gradient was not finite.
        grad_norm: L2 norm of the averaged gradient before clipping.
        num_zeros: Zero entries of the gradient, or None when they were not counted.
        is_nan: A loss is not finite, or a gradient is not and no dynamic loss scale explains it.
        fault: Which process and micro-batch were not finite, with tracing also which layer; None
            when fine.
    """

    losses: dict[str, float]
    updated: bool
    grad_norm: float | None
    num_zeros: int | None
    is_nan: bool
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepPolicy:
    """Choices of the training step.

    Attributes:
        per_token_loss: Average over all tokens of the iteration, not over micro-batch means.
        count_zeros: Count zero gradient entries.
        dynamic_loss_scale: Overflow of gradients is expected and handled by the loss scale.
        trace_nan: Find the layer with the first value that is not finite.
        empty_cache_level: CUDA: 1 frees cached memory after the step, 2 before the update too.
    """

    per_token_loss: bool
    count_zeros: bool
    dynamic_loss_scale: bool
    trace_nan: bool
    empty_cache_level: int


class TrainStep:
    """Runs one iteration at a time.

    Args:
        learner: The model, in training mode, and its optimizer.
        family: What the losses are.
        passes: Runs the micro-batches.
        policy: Choices of the step.
        groups: The groups of this process.
        device: Where the model is.
        timers: Timers of the run.
        profiler: Names the parts of the step.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        family: Family[Any],
        passes: Passes,
        policy: StepPolicy,
        groups: ParallelGroups,
        device: torch.device,
        timers: Timers,
        profiler: Profiler,
    ) -> None:
        self._model = learner.model
        self._optimizer = learner.optimizer
        self._fp8 = learner.fp8
        self._family = family
        self._passes = passes
        self._policy = policy
        self._groups = groups
        self._device = device
        self._timers = timers
        self._profiler = profiler

    def __call__(
        self, batches: Iterator[Any], *, num_microbatches: int, rates: Rates
    ) -> StepOutcome:
        """Run one iteration.

        Args:
            batches: Source of micro-batches.
            num_microbatches: How many to take.
            rates: Learning rates and weight decay.

        Raises:
            DataError: The source has no more micro-batches.
        """
        self._optimizer.zero_grad()
        with self._timers.time("forward-backward"):
            result = self._passes.train(batches, num_microbatches)
        if self._policy.empty_cache_level >= 2 and self._device.type == "cuda":
            torch.cuda.empty_cache()
        outcome = self._update(result, rates)
        if outcome.is_nan:
            outcome = self._explain(outcome, result)
        if self._policy.empty_cache_level >= 1 and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return outcome

    def _update(self, passed: PassResult, rates: Rates) -> StepOutcome:
        with self._timers.time("optimizer"), self._profiler.range("optimizer"):
            tokens = max(passed.num_counted, 1.0)
            result = self._optimizer.step(
                rates,
                grad_divisor=tokens if self._policy.per_token_loss else 1.0,
                count_zero_grads=self._policy.count_zeros,
            )
            if self._fp8 is not None:
                self._fp8.update()
        gradient_is_nan = not result.updated and not self._policy.dynamic_loss_scale
        return StepOutcome(
            losses=dict(passed.means),
            updated=result.updated,
            grad_norm=result.grad_norm,
            num_zeros=result.num_zeros,
            is_nan=gradient_is_nan or not all(map(math.isfinite, passed.means.values())),
        )

    def _explain(self, outcome: StepOutcome, passed: PassResult) -> StepOutcome:
        """Adds to the outcome what was not finite and, with tracing, where that began.

        The loss and the norm are those of the whole run, so all processes come here together.
        """
        world = self._groups.world
        bad = [index for index, loss in enumerate(passed.loss_sums) if not math.isfinite(loss)]
        first_bad = gathered([bad[0] if bad else -1.0], world, self._device)
        culprit = next((rank for rank, (index,) in enumerate(first_bad) if index >= 0), None)
        loss = outcome.losses[LM_LOSS]
        if culprit is not None:
            where = f"micro-batch {int(first_bad[culprit][0]) + 1} of {passed.num_microbatches}"
            fault = f"the loss is {loss} ({self._on(culprit)}{where})"
        else:
            fault = f"the gradient norm is {outcome.grad_norm}, the loss {loss}"
        if self._policy.trace_nan:
            # Without a loss to point at the culprit, every micro-batch is a suspect.
            suspects = bad[:1] if culprit is not None else range(len(passed.kept))
            traces = [self._trace(passed, index) for index in suspects]
            texts = gathered_texts("".join(traces), world, self._device)
            fault += "".join(texts)
        return StepOutcome(**{**vars(outcome), "fault": fault})

    def _on(self, rank: int) -> str:
        return f"rank {rank}, " if self._groups.world_size > 1 else ""

    def _trace(self, passed: PassResult, index: int) -> str:
        place = self._first_non_finite(passed.kept[index])
        rank = self._on(self._groups.rank)
        return f"\n{rank}micro-batch {index + 1}: first non-finite: {place}"

    def _first_non_finite(self, kept: Kept) -> str:
        (model,) = self._model.stages.values()

        def run() -> Tensor:
            torch.set_rng_state(kept.cpu_state)
            if kept.cuda_state is not None:
                torch.cuda.set_rng_state(kept.cuda_state, self._device)
            sums = self._family.losses(model, kept.batch, None)
            assert isinstance(sums, tuple)
            trained = self._family.num_trained
            counts = self._family.counts(kept.batch)
            return mean_sum(sums[:trained], counts[:trained], 1.0)

        with torch_rng_preserved(self._device):
            return find_non_finite(model, run)

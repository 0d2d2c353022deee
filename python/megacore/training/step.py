"""One training iteration: micro-batches, gradient accumulation, update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.data import Batch
from megacore.errors import DataError, MegacoreError
from megacore.models.gpt import GPTModel
from megacore.optim import Rates
from megacore.training.learner import Learner
from megacore.training.nan_trace import find_non_finite
from megacore.training.profiling import Profiler
from megacore.training.seeding import torch_rng_preserved
from megacore.training.timers import Timers

LOSS_KEY = "lm loss"


class NonFiniteError(MegacoreError):
    """The loss or the gradient is NaN or infinite and checking is on."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one iteration did.

    Attributes:
        losses: Loss name -> sum of token losses over all micro-batches / number of tokens.
        updated: False when the update was skipped because a gradient was not finite.
        grad_norm: L2 norm of the averaged gradient before clipping.
        num_zeros: Zero entries of the gradient, or None when they were not counted.
        is_nan: A loss is not finite, or a gradient is not and no dynamic loss scale explains it.
        fault: Which micro-batch was not finite, with tracing also which layer; None when fine.
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


@dataclass(frozen=True)
class _Kept:
    """A micro-batch and the random state before it, for tracing."""

    batch: Batch
    cpu_state: Tensor
    cuda_state: Tensor | None


class TrainStep:
    """Runs one iteration at a time.

    Args:
        learner: The model, in training mode, and its optimizer.
        policy: Choices of the step.
        device: Where the model is.
        timers: Timers of the run.
        profiler: Names the parts of the step.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        policy: StepPolicy,
        device: torch.device,
        timers: Timers,
        profiler: Profiler,
    ) -> None:
        self._model = learner.model
        self._optimizer = learner.optimizer
        self._policy = policy
        self._device = device
        self._timers = timers
        self._profiler = profiler

    def __call__(
        self, batches: Iterator[Batch], *, num_microbatches: int, rates: Rates
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
        loss_sums: list[Tensor] = []
        token_counts: list[float] = []
        kept: list[_Kept] = []
        with self._timers.time("forward-backward"):
            for _ in range(num_microbatches):
                with self._timers.time("batch-generator"), self._profiler.range("data"):
                    batch, tokens = next_batch(batches, self._device)
                if self._policy.trace_nan:
                    kept.append(self._keep(batch))
                loss_sums.append(self._forward_backward(batch, tokens, num_microbatches))
                token_counts.append(tokens)
        if self._policy.empty_cache_level >= 2 and self._device.type == "cuda":
            torch.cuda.empty_cache()
        sums = torch.stack(loss_sums).double().tolist()
        outcome = self._update(sums, token_counts, num_microbatches, rates)
        if outcome.is_nan:
            outcome = self._explain(outcome, sums, kept)
        if self._policy.empty_cache_level >= 1 and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return outcome

    def _forward_backward(self, batch: Batch, tokens: float, num_microbatches: int) -> Tensor:
        """Adds the gradients of one micro-batch; the sum of its token losses."""
        with self._timers.time("forward-compute"), self._profiler.range("forward"):
            loss_sum = token_loss_sum(self._model, batch)
        loss = loss_sum
        if not self._policy.per_token_loss:
            # A micro-batch whose tokens are all masked has no loss and no gradient, not 0/0.
            loss = loss_sum / (max(tokens, 1.0) * num_microbatches)
        with self._timers.time("backward-compute"), self._profiler.range("backward"):
            self._optimizer.backward(loss)
        return loss_sum.detach()

    def _update(
        self, sums: Sequence[float], counts: Sequence[float], num_microbatches: int, rates: Rates
    ) -> StepOutcome:
        tokens = max(sum(counts), 1.0)
        loss = sum(sums) / tokens
        with self._timers.time("optimizer"), self._profiler.range("optimizer"):
            result = self._optimizer.step(
                rates,
                grad_divisor=tokens if self._policy.per_token_loss else 1.0,
                count_zero_grads=self._policy.count_zeros,
            )
        gradient_is_nan = not result.updated and not self._policy.dynamic_loss_scale
        return StepOutcome(
            losses={LOSS_KEY: loss},
            updated=result.updated,
            grad_norm=result.grad_norm,
            num_zeros=result.num_zeros,
            is_nan=gradient_is_nan or not math.isfinite(loss),
        )

    def _keep(self, batch: Batch) -> _Kept:
        on_gpu = self._device.type == "cuda"
        cuda_state = torch.cuda.get_rng_state(self._device) if on_gpu else None
        return _Kept(batch, torch.get_rng_state(), cuda_state)

    def _explain(
        self, outcome: StepOutcome, sums: Sequence[float], kept: Sequence[_Kept]
    ) -> StepOutcome:
        """Adds to the outcome what was not finite and, with tracing, where that began."""
        loss = outcome.losses[LOSS_KEY]
        bad = [index for index, value in enumerate(sums) if not math.isfinite(value)]
        if bad:
            fault = f"the loss is {loss} (micro-batch {bad[0] + 1} of {len(sums)})"
        else:
            fault = f"the gradient norm is {outcome.grad_norm}, the loss {loss}"
        if kept:
            # Without a loss to point at the culprit, every micro-batch is a suspect.
            for index in bad[:1] or range(len(kept)):
                place = self._trace(kept[index])
                fault += f"\nmicro-batch {index + 1}: first non-finite: {place}"
        return StepOutcome(**{**vars(outcome), "fault": fault})

    def _trace(self, kept: _Kept) -> str:
        def run() -> Tensor:
            torch.set_rng_state(kept.cpu_state)
            if kept.cuda_state is not None:
                torch.cuda.set_rng_state(kept.cuda_state, self._device)
            tokens = float(kept.batch.loss_mask.sum(dtype=torch.float64))
            return token_loss_sum(self._model, kept.batch) / max(tokens, 1.0)

        with torch_rng_preserved(self._device):
            return find_non_finite(self._model, run)


def token_loss_sum(model: GPTModel, batch: Batch) -> Tensor:
    """Sum of the losses of the tokens that count: [] float32."""
    losses = model(
        batch.tokens, batch.position_ids, labels=batch.labels, cu_seqlens=batch.cu_seqlens
    )
    return (losses.float() * batch.loss_mask).sum()


def next_batch(batches: Iterator[Batch], device: torch.device) -> tuple[Batch, float]:
    """The next micro-batch, on the device, and how many of its tokens count.

    The tokens are counted, and document lengths stay, on the host, so that nothing waits for the
    device.

    Raises:
        DataError: There is none left.
    """
    try:
        batch = next(batches)
    except StopIteration:
        raise DataError(
            "the dataset has no sequences left for another micro-batch: give more data, fewer "
            "iterations, or --dataloader-type cyclic"
        ) from None
    tokens = float(batch.loss_mask.sum(dtype=torch.float64))
    if device.type == "cpu":
        return batch, tokens
    moved = Batch(
        tokens=batch.tokens.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        loss_mask=batch.loss_mask.to(device, non_blocking=True),
        position_ids=batch.position_ids.to(device, non_blocking=True),
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
    )
    return moved, tokens

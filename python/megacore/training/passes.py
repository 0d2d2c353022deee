"""Forward and backward of the micro-batches of one step through the stages of this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megacore._C import pipeline as core
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.p2p import TensorSpec
from megacore.parallel.pipeline import PipelineHooks
from megacore.parallel.pipeline_plan import Pipeline
from megacore.training.agreement import summed
from megacore.training.family import Family, mean_sum
from megacore.training.feed import Cut, Feed
from megacore.training.learner import Learner
from megacore.training.pipeline_trace import PipelineTraces
from megacore.training.profiling import Profiler
from megacore.training.run_config import RunConfig
from megacore.training.timers import Timers

_BACKWARD = (core.Kind.BACKWARD, core.Kind.INPUT_GRAD, core.Kind.WEIGHT_GRAD)


@dataclass(frozen=True)
class Kept:
    """A micro-batch and the random state before it, for tracing."""

    batch: Any
    cpu_state: Tensor
    cuda_state: Tensor | None


@dataclass(frozen=True)
class PassResult:
    """What one pass gave.

    Attributes:
        loss_sums: Sum of the first loss of each micro-batch, of this process's part of the
            sequences; empty where this process has not the end of the model.
        means: Every loss of the run, divided by the number of things that it is a sum of; 0 when
            there are none.
        num_counted: Things of the whole run that the first loss is a sum of.
        num_microbatches: Micro-batches of each replica.
        kept: What is needed to run a micro-batch again, when that was asked for.
    """

    loss_sums: Sequence[float]
    means: Mapping[str, float]
    num_counted: float
    num_microbatches: int
    kept: Sequence[Kept] = ()


@dataclass
class _Pass:
    """One pass while it runs.

    Attributes:
        feed: Its micro-batches.
        divisor: The mean losses of a micro-batch are divided by it; None: the sum of its token
            losses is wanted.
        scale: Factor on the loss.
        keep: Keep what is needed to run a micro-batch again.
        loss_sums: Micro-batch -> [k] sums of its losses.
        kept: What was kept.
    """

    feed: Feed
    divisor: float | None = None
    scale: float = 1.0
    keep: bool = False
    loss_sums: dict[int, Tensor] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)


class Passes:
    """Runs micro-batches through the stages of this process.

    A loop over them where the whole model is here, a pipeline schedule otherwise.

    Args:
        learner: The stages, and their optimizer.
        family: What the losses are.
        run: Resolved settings.
        groups: The groups of this process.
        device: Where the stages are.
        timers: Timers of the run.
        profiler: Names the parts of the pass.
        pipeline_traces: Keeps what the pipeline did in profiled iterations.
        cut: Takes this process's part of the sequences; None: all of them.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        family: Family[Any],
        run: RunConfig,
        groups: ParallelGroups,
        device: torch.device,
        timers: Timers,
        profiler: Profiler,
        pipeline_traces: PipelineTraces,
        cut: Cut | None = None,
    ) -> None:
        self._model = learner.model
        self._family = family
        self._optimizer = learner.optimizer
        self._groups = groups
        self._device = device
        self._timers = timers
        self._profiler = profiler
        self._pipeline_traces = pipeline_traces
        self._per_token_loss = run.training.calculate_per_token_loss
        self._cut = cut
        self._keep = run.training.trace_nan
        self._pass: _Pass | None = None
        self._stages = {number: partial(self._stage, number) for number in self._model.stages}
        self._pipeline: Pipeline | None = None
        if groups.pp.size > 1:
            self._pipeline = Pipeline(
                run.parallel,
                run.model.total_depth or 0,
                groups=groups,
                stages=self._stages,
                spec=self._hidden_spec(run),
                store=self._model.store,
                hooks=PipelineHooks(before_last=self._before_last, after_last=self._after_last),
                own_channels=device.type == "cuda",
            )

    def train(self, source: Iterator[Any], num_microbatches: int) -> PassResult:
        """Adds the gradients of the next micro-batches to the sums of the optimizer.

        Raises:
            DataError: The source has no more micro-batches.
        """
        done = self._begin(source)
        done.keep = self._keep
        if not self._per_token_loss:
            # The gradients of the parts of a sequence are averaged like those of replicas,
            # although they belong together.
            done.divisor = num_microbatches / self._groups.cp.size
        if self._pipeline is not None:
            done.scale = self._optimizer.loss_scale
            runner = self._pipeline.runner(num_microbatches)
            trace = runner.run().trace
            self._count_backward(trace)
            self._pipeline_traces.record(runner.schedule, trace)
        else:
            self._loop(num_microbatches)
        return self._result([done])

    def _loop(self, num_microbatches: int) -> None:
        ((number, stage),) = self._stages.items()
        for index in range(num_microbatches):
            loss = stage(index, None)
            if index == num_microbatches - 1:
                self._before_last(number)
            with self._timers.time("backward-compute"), self._profiler.range("backward"):
                self._optimizer.backward(loss)

    @torch.no_grad()
    def evaluate(self, source: Iterator[Any], *, num_microbatches: int, repeats: int) -> PassResult:
        """The losses of the next micro-batches; no random number is drawn.

        Args:
            source: Where they come from.
            num_microbatches: Of one step, which a pipeline runs together.
            repeats: How many steps.

        Raises:
            DataError: The source has no more micro-batches.
        """
        done = []
        self._model.train(False)
        try:
            for _ in range(repeats):
                done.append(self._begin(source))
                if self._pipeline is not None:
                    self._pipeline.runner(num_microbatches).run(forward_only=True)
                    continue
                (stage,) = self._stages.values()
                for index in range(num_microbatches):
                    stage(index, None)
        finally:
            self._model.train()
        return self._result(done)

    def _begin(self, source: Iterator[Any]) -> _Pass:
        feed = Feed(
            source,
            family=self._family,
            device=self._device,
            num_uses=len(self._stages),
            cut=self._cut,
        )
        self._pass = _Pass(feed)
        return self._pass

    def _stage(self, number: int, index: int, hidden: Tensor | None) -> Tensor:
        """Output of a stage, or the loss whose gradient is wanted, for one micro-batch."""
        running = self._pass
        assert running is not None
        model = self._model.stages[number]
        with self._timers.time("batch-generator"), self._profiler.range("data"):
            microbatch = running.feed.take(index)
        if running.keep:
            running.kept.append(_keep(microbatch.batch, self._device))
        with self._timers.time("forward-compute"), self._profiler.range("forward"):
            output = self._family.losses(model, microbatch.batch, hidden)
        if isinstance(output, Tensor):
            return output
        running.loss_sums[index] = torch.stack([loss.detach() for loss in output])
        trained = output[: self._family.num_trained]
        if running.divisor is None:
            loss = torch.stack(trained).sum() if len(trained) > 1 else trained[0]
        else:
            loss = mean_sum(trained, microbatch.counts[: len(trained)], running.divisor)
        return loss if running.scale == 1.0 else loss * running.scale

    def _chunk(self, number: int) -> int:
        return list(self._stages).index(number)

    def _before_last(self, number: int) -> None:
        self._optimizer.last_microbatch(self._chunk(number))

    def _after_last(self, number: int) -> None:
        """All gradients of the stage are there, also those of parameters it did not use."""
        for parameter in self._model.stages[number].parameters():
            self._optimizer.ready(parameter)

    def _hidden_spec(self, run: RunConfig) -> TensorSpec:
        """What goes from stage to stage: [b, S / cp, H], or [b, S / (cp tp), H]."""
        length = self._family.stage_length(run) // self._groups.cp.size
        if run.parallel.sequence_parallel:
            length //= self._groups.tp.size
        model = next(iter(self._model.stages.values()))
        return TensorSpec(
            (run.batch.micro_batch_size or 1, length, model.spec.hidden_size),
            torch.float32 if model.spec.fp32_residual else model.dtype,
            self._device,
        )

    def _count_backward(self, trace: core.RunTrace) -> None:
        if self._timers.is_on("backward-compute"):
            steps = [step for step in trace.steps if step.action.kind in _BACKWARD]
            seconds = sum(step.end_ns - step.start_ns for step in steps) / 1e9
            self._timers["backward-compute"].add(seconds, count=len(steps))

    def _result(self, done: Sequence[_Pass]) -> PassResult:
        names = self._family.loss_names
        losses = [loss for one in done for loss in one.loss_sums.values()]
        sums: list[list[float]] = torch.stack(losses).double().tolist() if losses else []
        totals = [sum(column) for column in zip(*sums, strict=True)] or [0.0] * len(names)
        counts = [sum(column) for column in zip(*(one.feed.counts for one in done), strict=True)]
        # Tensor-parallel processes have the same losses, and all processes of a replica read the
        # same tokens: each is counted once.
        groups = self._groups
        first = groups.tp.is_first
        speaks_for_replica = first and groups.cp.is_first and groups.pp.is_first
        own = [
            *(totals if first else [0.0] * len(names)),
            *(counts if speaks_for_replica else [0.0] * len(names)),
        ]
        gathered = summed(own, groups.world, self._device)
        totals, counts = gathered[: len(names)], gathered[len(names) :]
        return PassResult(
            loss_sums=[column[0] for column in sums],
            means={
                name: total / max(count, 1.0)
                for name, total, count in zip(names, totals, counts, strict=True)
            },
            num_counted=counts[0],
            num_microbatches=sum(one.feed.num_read for one in done),
            kept=[kept for one in done for kept in one.kept],
        )


def _keep(batch: Any, device: torch.device) -> Kept:
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Kept(batch, torch.get_rng_state(), cuda_state)

"""The parts of a run, and the steps that the loop takes with them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch

from megacore.optim import BatchSize, MicrobatchCalculator
from megacore.parallel.groups import ParallelGroups
from megacore.training.agreement import any_of, largest
from megacore.training.batches import Batches
from megacore.training.checkpoints import Checkpoints
from megacore.training.learner import Learner
from megacore.training.live_view import Screen
from megacore.training.log_line import format_moment
from megacore.training.passes import Passes
from megacore.training.profiling import Profiler
from megacore.training.reporting import IterationReport, Reporter
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState
from megacore.training.signals import TermSignal
from megacore.training.speed import SpeedModel
from megacore.training.step import NonFiniteError, StepOutcome, TrainStep
from megacore.training.timers import Timers


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a trainer works with, each part with one job.

    Attributes:
        learner: Model, optimizer and schedule.
        batch_sizes: Global batch size and number of micro-batches by consumed samples.
        step: Runs one iteration.
        passes: Runs micro-batches, for evaluation.
        batches: Sources of micro-batches.
        checkpoints: Saves the run.
        reporter: Log lines and metrics.
        speed: Counts operations.
        profiler: Profiler window.
        timers: Timers.
        screen: Prints lines.
        term: Whether SIGTERM came.
        groups: The groups of this process.
        device: Where the model is.
    """

    learner: Learner
    batch_sizes: MicrobatchCalculator
    step: TrainStep
    passes: Passes
    batches: Batches
    checkpoints: Checkpoints
    reporter: Reporter
    speed: SpeedModel
    profiler: Profiler
    timers: Timers
    screen: Screen
    term: TermSignal
    groups: ParallelGroups
    device: torch.device


class Trainer:
    """A run in progress.

    Args:
        parts: What it works with.
        run: Resolved settings.
        state: Counters, continued from a checkpoint or fresh.
        train_iters: Iteration at which training ends.
        started: When the process started, for the exit by duration.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        run: RunConfig,
        state: RunState,
        train_iters: int,
        started: datetime,
    ) -> None:
        self._parts = parts
        self._training = run.training
        self._state = state
        self._train_iters = train_iters
        self._samples_per_pass = (run.batch.micro_batch_size or 1) * parts.groups.dp.size
        self._check_finite = run.training.check_for_nan_in_loss_and_grad
        self._started = started
        self._first_iteration = state.iteration
        self._saved_iteration: int | None = None
        self._size: BatchSize | None = None
        self._outcome: StepOutcome | None = None

    @property
    def learner(self) -> Learner:
        """What it trains."""
        return self._parts.learner

    @property
    def parts(self) -> Parts:
        """What it works with."""
        return self._parts

    @property
    def iteration(self) -> int:
        """Iterations done so far."""
        return self._state.iteration

    @property
    def is_finished(self) -> bool:
        """Whether all iterations are done."""
        return self._state.iteration >= self._train_iters

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the validation loss is to be measured after this iteration."""
        return (
            self._can_evaluate(self._parts.batches.valid)
            and self._training.eval_interval > 0
            and self._state.iteration % self._training.eval_interval == 0
        )

    def _can_evaluate(self, batches: Iterator[Any] | None) -> bool:
        return batches is not None and self._training.eval_iters > 0

    def begin(self) -> None:
        """Start the clocks; take garbage collection into our own hands when asked to."""
        self._parts.checkpoints.prepare()
        self._parts.learner.model.train()
        if self._training.manual_gc:
            gc.disable()
            gc.collect()
        self._parts.screen.line(format_moment("before the start of training step"))
        self._parts.timers["interval-time"].start()

    def choose_batch_size(self) -> None:
        """Batch size of the next iteration; a step of the ramp-up saves before it."""
        size = self._parts.batch_sizes.at(self._state.consumed_train_samples)
        if self._size is not None and size != self._size:
            line = (
                f"setting number of micro-batches to {size.num_microbatches}, global batch size "
                f"to {size.global_batch_size}"
            )
            self._parts.screen.line(line)
            self._save()
        self._size = size

    def run_step(self) -> StepOutcome:
        """One iteration of training, and the counters that go with it."""
        parts, state, size = self._parts, self._state, self._size
        assert size is not None
        assert parts.batches.train is not None
        parts.groups.record.step = state.iteration + 1
        parts.profiler.before_iteration(state.iteration)
        self._outcome = parts.step(
            parts.batches.train,
            num_microbatches=size.num_microbatches,
            rates=parts.learner.scheduler.rates(),
        )
        if self._outcome.updated:
            parts.learner.scheduler.advance(size.global_batch_size)
        state.iteration += 1
        nominal = parts.batch_sizes.nominal(state.consumed_train_samples)
        state.skipped_train_samples += nominal - size.global_batch_size
        state.consumed_train_samples += size.global_batch_size
        state.floating_point_operations += parts.speed.flops(size.global_batch_size)
        every = self._training.train_sync_interval
        if every and state.iteration % every == 0 and parts.device.type == "cuda":
            torch.cuda.synchronize(parts.device)
        return self._outcome

    def report_step(self) -> None:
        """Log line and scalars; an iteration that will stop the run always gets its line."""
        parts, size, outcome = self._parts, self._size, self._outcome
        assert size is not None
        assert outcome is not None
        wanted = parts.reporter.wants_params_norm(self._state.iteration)
        report = IterationReport(
            outcome=outcome,
            rates=parts.learner.scheduler.rates(),
            batch_size=size.global_batch_size,
            loss_scale=parts.learner.optimizer.loss_scale,
            params_norm=parts.learner.optimizer.params_norm() if wanted else None,
        )
        stops = outcome.is_nan and self._check_finite
        parts.reporter.iteration(self._state, report, force=stops)

    def stop_if_not_finite(self) -> None:
        """End the run at a NaN or infinity, if that is checked.

        Raises:
            NonFiniteError: Names the iteration, the micro-batch and, with tracing, the layer.
        """
        outcome = self._outcome
        if outcome is None or outcome.fault is None:
            return
        message = f"iteration {self._state.iteration}: {outcome.fault}"
        if not self._check_finite:
            self._parts.screen.line(f"WARNING: {message}")
            return
        if not self._training.trace_nan and self._parts.groups.model.size == 1:
            message += (
                "\n(--trace-nan names the layer, --no-check-for-nan-in-loss-and-grad goes on)"
            )
        raise NonFiniteError(message)

    def evaluate_between_steps(self) -> None:
        """Validation loss; neither its time nor its garbage is charged to training."""
        timers = self._parts.timers
        timers["interval-time"].stop()
        collect = self._training.manual_gc and self._training.manual_gc_eval
        if collect:
            gc.collect()
        self._evaluate("validation", f"iteration {self._state.iteration}")
        if collect:
            gc.collect(generation=0)
        timers["interval-time"].start()

    def _evaluate(self, set_name: str, prefix: str, *, write: bool = True) -> None:
        parts, state = self._parts, self._state
        batches = parts.batches.valid if set_name == "validation" else parts.batches.test
        assert batches is not None
        samples = self._training.eval_iters * parts.batch_sizes.max_global_batch_size
        with parts.timers.time("evaluate"), parts.profiler.range("evaluate"):
            passed = parts.passes.evaluate(
                batches,
                num_microbatches=samples // (self._training.eval_iters * self._samples_per_pass),
                repeats=self._training.eval_iters,
            )
        losses = passed.means
        if set_name == "validation":
            state.consumed_valid_samples += samples
        parts.reporter.evaluation(state, losses, prefix=prefix, set_name=set_name, write=write)
        report = parts.timers.report(["evaluate"])
        if report is not None:
            parts.screen.line(report)

    def save_and_exit_if_due(self) -> bool:
        """Save when it is time, and say whether to leave.

        Order: SIGTERM, periodic save, duration, interval.
        """
        training, iteration = self._training, self._state.iteration
        checkpoints = self._parts.checkpoints
        checkpoints.poll()
        if self._term_received():
            self.save_for_good()
            self._say_moment("exiting program after receiving SIGTERM.")
            return True
        if _is_due(iteration, checkpoints.interval):
            self._save()
        elif _is_due(iteration, checkpoints.non_persistent_interval):
            self._save(is_persistent=False)
        if training.exit_duration_in_mins:
            minutes = self._minutes()
            if minutes > training.exit_duration_in_mins:
                self.save_for_good()
                self._say_moment(f"exiting program after {minutes} minutes")
                return True
        if _is_due(iteration, training.exit_interval):
            self.save_for_good()
            self._say_moment(f"exiting program at iteration {iteration}")
            return True
        return False

    def _term_received(self) -> bool:
        """Whether any process was told to end; it may have been only one of them."""
        if not self._training.exit_signal_handler:
            return False
        return any_of(self._parts.term.received, self._parts.groups.world, self._parts.device)

    def _minutes(self) -> float:
        """Minutes since the first process of the run started."""
        minutes = (datetime.now() - self._started).total_seconds() / 60.0
        return largest([minutes], self._parts.groups.world, self._parts.device)[0]

    def tidy_up(self) -> None:
        """End of an iteration that is not the last one on purpose."""
        training, iteration = self._training, self._state.iteration
        self._parts.profiler.after_iteration(iteration)
        every = training.manual_gc_interval
        if training.manual_gc and every and iteration % every == 0:
            gc.collect()

    def save_at_end(self) -> None:
        """The last checkpoint, unless it has been written or nothing was trained."""
        self._say_moment("after training is done")
        if self._state.iteration != self._first_iteration:
            self._save()

    def save_for_good(self) -> None:
        """Save the run as it is before it ends early; published when this returns."""
        self._save()
        self._parts.checkpoints.finish()

    def evaluate_at_end(self) -> None:
        """Loss on the validation and on the test set."""
        write = not self._training.skip_train
        for set_name, batches in (
            ("validation", self._parts.batches.valid),
            ("test", self._parts.batches.test),
        ):
            if self._can_evaluate(batches):
                prefix = f"iteration {self._state.iteration} on {set_name} set"
                self._evaluate(set_name, prefix, write=write)
        self._parts.checkpoints.finish()

    def _save(self, *, is_persistent: bool = True) -> None:
        """Save once per iteration at most; the time is not charged to training."""
        parts, iteration = self._parts, self._state.iteration
        if not parts.checkpoints.is_on or self._saved_iteration == iteration:
            return
        interval_timer = parts.timers["interval-time"]
        running = interval_timer.is_running
        if running:
            interval_timer.stop()
        with parts.timers.time("save-checkpoint"), parts.profiler.range("save"):
            parts.checkpoints.save(self._state, is_persistent=is_persistent)
        if is_persistent:
            self._saved_iteration = iteration
        report = parts.timers.report(["save-checkpoint"])
        if report is not None:
            parts.screen.line(report)
        if running:
            interval_timer.start()

    def _say_moment(self, message: str) -> None:
        self._parts.screen.line(format_moment(message))

    def close(self) -> None:
        """Write what the profiler still holds."""
        self._parts.profiler.close(self._state.iteration)
        if self._training.manual_gc:
            gc.enable()


def _is_due(iteration: int, interval: int | None) -> bool:
    return bool(interval) and iteration % (interval or 1) == 0

"""Turns the outcome of iterations and evaluations into log lines, scalars and JSON lines."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import torch

from megacore.config.layers import Origin
from megacore.optim import Rates
from megacore.parallel.groups import ParallelGroups, single_process_groups
from megacore.training.config import LoggingConfig
from megacore.training.family import LM_LOSS
from megacore.training.flops import MEBIBYTE
from megacore.training.footprint import Footprint, format_theoretical_memory
from megacore.training.live_view import Screen
from megacore.training.log_line import (
    FIELD_OF_NAME,
    IterationRecord,
    format_iteration,
    format_validation,
    perplexity,
)
from megacore.training.memory import format_memory, memory_everywhere, memory_use
from megacore.training.outputs import Outputs
from megacore.training.run_state import RunState
from megacore.training.speed import Speed, SpeedModel
from megacore.training.step import StepOutcome
from megacore.training.timers import ITERATION_TIMERS, Timers

LIVE_SECONDS = 0.2


@dataclass
class Interval:
    """What happened since the last log line."""

    advanced: int = 0
    skipped: int = 0
    nan: int = 0
    samples: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_counts: dict[str, int] = field(default_factory=dict)

    def add(self, outcome: StepOutcome, *, samples: int) -> None:
        """Take note of one iteration.

        A skipped iteration does not count in the means, unless its loss is not finite: that must
        show in the line.
        """
        self.advanced += int(outcome.updated)
        self.skipped += int(not outcome.updated)
        self.nan += int(outcome.is_nan)
        self.samples += samples
        for key, value in outcome.losses.items():
            if outcome.updated or not math.isfinite(value):
                self.loss_sums[key] = self.loss_sums.get(key, 0.0) + value
                self.loss_counts[key] = self.loss_counts.get(key, 0) + 1

    @property
    def iterations(self) -> int:
        """Iterations in the interval."""
        return self.advanced + self.skipped

    def means(self) -> dict[str, float]:
        """Loss name -> mean."""
        return {key: self.loss_sums[key] / self.loss_counts[key] for key in self.loss_sums}


@dataclass(frozen=True, kw_only=True)
class IterationReport:
    """One iteration, as the reporter sees it.

    Attributes:
        outcome: What the step did.
        rates: Rates that the next iteration uses.
        batch_size: Sequences of the iteration.
        loss_scale: Scale after the iteration.
        params_norm: Norm of the parameters, or None when it was not computed.
    """

    outcome: StepOutcome
    rates: Rates
    batch_size: int
    loss_scale: float
    params_norm: float | None


class Reporter:
    """Writes everything that a run says about its progress.

    Every process of a run has one, since some figures come from all of them; only the first
    process has a screen that shows and outputs that write.

    Args:
        logging: What is logged and how often.
        screen: Prints lines.
        outputs: TensorBoard, W&B and the metrics file.
        timers: Timers of the run; "interval-time" must be running while iterations are done.
        speed: Turns time into speed.
        device: Where training runs.
        train_iters: Iteration at which training ends.
        footprint: What the memory of the most loaded process is estimated from.
        groups: The groups of this process; None for a run of one process.
    """

    def __init__(
        self,
        logging: LoggingConfig,
        *,
        screen: Screen,
        outputs: Outputs,
        timers: Timers,
        speed: SpeedModel,
        device: torch.device,
        train_iters: int,
        footprint: Footprint,
        groups: ParallelGroups | None = None,
    ) -> None:
        self._logging = logging
        self._screen = screen
        self._writers = outputs.writers
        self._json_lines = outputs.json_lines
        self._timers = timers
        self._speed = speed
        self._device = device
        self._train_iters = train_iters
        self._footprint = footprint
        self._groups = groups or single_process_groups()
        # Not whether this process has writers: scalars need figures of all processes.
        self._wants_scalars = bool(logging.tensorboard_dir or logging.wandb_project)
        self._interval = Interval()
        self._memory_reported = False
        self._live_at = 0.0
        self._last_validation: dict[str, str] = {}

    def start(
        self,
        state: RunState,
        settings: Mapping[str, Any],
        *,
        origins: Mapping[str, Origin],
        batch_size: int,
    ) -> None:
        """Say from where training starts and with which settings.

        Args:
            state: Counters.
            settings: Name -> value.
            origins: Name -> where the value came from.
            batch_size: Global batch size after any ramp-up.
        """
        self._screen.line(self._speed.convention(batch_size))
        for writer in self._writers:
            for name, value in settings.items():
                writer.add_text(name, str(value), state.iteration)
        if self._json_lines is not None:
            given = {name: str(o) for name, o in origins.items() if o.kind != "default"}
            self._json_lines.write(
                "start",
                {
                    "iteration": state.iteration,
                    "time": time.time(),
                    "args": settings,
                    "origins": given,
                },
            )

    def wants_params_norm(self, iteration: int) -> bool:
        """Whether the parameter norm of this iteration will be shown."""
        shown = iteration % self._logging.log_interval == 0 or (
            self._wants_scalars and iteration % self._logging.tensorboard_log_interval == 0
        )
        return self._logging.log_params_norm and shown

    def iteration(self, state: RunState, report: IterationReport, *, force: bool = False) -> None:
        """Report one iteration; `force` prints a log line whatever the interval."""
        self._interval.add(report.outcome, samples=report.batch_size)
        if self._wants_scalars and state.iteration % self._logging.tensorboard_log_interval == 0:
            self._write_scalars(state, report)
        if force or state.iteration % self._logging.log_interval == 0:
            self._log(state, report)
            self._interval = Interval()
        elif self._screen.is_live and time.perf_counter() - self._live_at > LIVE_SECONDS:
            seconds = self._timers["interval-time"].elapsed(reset=False)
            self._update_live(state, report, self._interval, seconds)

    def _write_scalars(self, state: RunState, report: IterationReport) -> None:
        outcome, logging = report.outcome, self._logging
        both: dict[str, float] = {"learning-rate": report.rates.lr, "batch-size": report.batch_size}
        both.update(outcome.losses)
        if logging.log_loss_scale_to_tensorboard:
            both["loss-scale"] = report.loss_scale
        if logging.log_world_size_to_tensorboard:
            both["world-size"] = self._groups.world_size
        optional = {
            "grad-norm": outcome.grad_norm,
            "num-zeros": outcome.num_zeros,
            "params-norm": report.params_norm,
        }
        both.update({tag: value for tag, value in optional.items() if value is not None})
        alone: dict[str, float] = {}
        if report.rates.decoupled_lr is not None:
            alone["decoupled-learning-rate"] = report.rates.decoupled_lr
        if state.skipped_train_samples > 0:
            alone["skipped-train-samples"] = state.skipped_train_samples
        if logging.log_memory_to_tensorboard:
            use = memory_use(self._device)
            alone["mem-reserved-bytes"] = use.reserved
            alone["mem-allocated-bytes"] = use.allocated
            alone["mem-allocated-count"] = use.blocks
        if logging.log_timers_to_tensorboard:
            times = self._timers.everywhere(
                ITERATION_TIMERS, normalizer=1000.0 * self._interval.iterations, reset=False
            )
            alone.update({f"{name}-time": max(seconds) for name, seconds in times.items()})
        self._to_writers(state, both, alone)

    def _to_writers(
        self, state: RunState, both: Mapping[str, float], alone: Mapping[str, float]
    ) -> None:
        """Scalars by iteration; those of `both` also by samples, where a writer can do that."""
        for writer in self._writers:
            writer.add_scalars({**both, **alone}, state.iteration)
            if writer.takes_samples_axis:
                by_samples = {f"{tag} vs samples": value for tag, value in both.items()}
                writer.add_scalars(by_samples, state.consumed_train_samples)
            else:
                samples = {"samples vs steps": float(state.consumed_train_samples)}
                writer.add_scalars(samples, state.iteration)

    def _log(self, state: RunState, report: IterationReport) -> None:
        interval, logging = self._interval, self._logging
        seconds = self._timers["interval-time"].elapsed()
        per_iteration = seconds / interval.iterations
        speed = self._speed.speed(interval.samples, seconds)
        if logging.log_timers_to_tensorboard:
            alone = {"iteration-time": per_iteration}
            if logging.log_throughput:
                alone["throughput"] = speed.tflops
            self._to_writers(state, {}, alone)
        record = IterationRecord(
            time=datetime.now(),
            iteration=state.iteration,
            train_iters=self._train_iters,
            consumed_samples=state.consumed_train_samples,
            skipped_samples=state.skipped_train_samples,
            elapsed_ms=per_iteration * 1000.0,
            throughput_tflops=speed.tflops if logging.log_throughput else None,
            learning_rate=report.rates.lr,
            decoupled_learning_rate=report.rates.decoupled_lr,
            global_batch_size=report.batch_size,
            losses=interval.means(),
            loss_scale=report.loss_scale,
            grad_norm=report.outcome.grad_norm,
            num_zeros=report.outcome.num_zeros,
            params_norm=report.params_norm,
            skipped_iterations=interval.skipped,
            nan_iterations=interval.nan,
        )
        seconds_left = per_iteration * (self._train_iters - state.iteration)
        self._screen.line(format_iteration(record))
        self._screen.line(self._second_line(speed, seconds_left))
        if not self._memory_reported and report.rates.lr > 0.0:
            self._report_memory(state.iteration)
        timers = self._timers.report(ITERATION_TIMERS, normalizer=interval.iterations)
        if timers is not None:
            self._screen.line(timers)
        if self._json_lines is not None:
            self._json_lines.write("train", self._json_values(record, speed, seconds_left))
        self._update_live(state, report, interval, seconds)

    def _second_line(self, speed: Speed, seconds_left: float) -> str:
        figures = self._figures(speed, seconds_left)
        return "   " + " | ".join(f"{name}: {value}" for name, value in figures.items()) + " |"

    def _figures(self, speed: Speed, seconds_left: float) -> dict[str, str]:
        use = memory_use(self._device)
        figures = {
            "tokens/s": f"{speed.tokens_per_second:.1f}",
            "model TFLOP/s": f"{speed.tflops:.4g}",
            "MFU": f"{100 * speed.mfu:.1f}% of {self._speed.peak.tflops:.4g} TFLOP/s",
            f"{use.kind} (peak)": f"{use.allocated / MEBIBYTE:.0f} ({use.peak / MEBIBYTE:.0f}) MiB",
            "ETA": str(timedelta(seconds=round(seconds_left))),
        }
        if speed.tflops_hardware > speed.tflops:
            figures["with recompute"] = f"{speed.tflops_hardware:.4g} TFLOP/s"
        return figures

    def _report_memory(self, iteration: int) -> None:
        self._memory_reported = True
        selective = self._speed.recompute.recompute_granularity == "selective"
        line = format_theoretical_memory(
            self._speed.shape, self._footprint, selective_recompute=selective
        )
        self._screen.line(line)
        for rank, use in memory_everywhere(self._device, self._groups.model).items():
            self._screen.line(format_memory(use, iteration, rank=rank))

    def _json_values(
        self, record: IterationRecord, speed: Speed, seconds_left: float
    ) -> dict[str, Any]:
        use = memory_use(self._device)
        fields = {name: getattr(record, attribute) for name, attribute in FIELD_OF_NAME.items()}
        return {
            "iteration": record.iteration,
            "time": record.time.timestamp(),
            **record.losses,
            **{name: value for name, value in fields.items() if value is not None},
            "tokens/s": speed.tokens_per_second,
            "TFLOP/s": speed.tflops,
            "TFLOP/s causal": speed.tflops_causal,
            "TFLOP/s with recompute": speed.tflops_hardware,
            "MFU": speed.mfu,
            "memory bytes": use.allocated,
            "peak memory bytes": use.peak,
            "seconds left": seconds_left,
        }

    def _update_live(
        self, state: RunState, report: IterationReport, interval: Interval, seconds: float
    ) -> None:
        if not self._screen.is_live:
            return
        self._live_at = time.perf_counter()
        speed = self._speed.speed(interval.samples, seconds)
        left = seconds / max(1, interval.iterations) * (self._train_iters - state.iteration)
        loss = report.outcome.losses.get(LM_LOSS, math.nan)
        norm = report.outcome.grad_norm
        figures = {
            "loss": f"{loss:.4f} (perplexity {perplexity(loss):.1f})",
            "learning rate": f"{report.rates.lr:.3e}",
            "gradient norm": "-" if norm is None else f"{norm:.3f}",
            "samples": f"{state.consumed_train_samples} (batch {report.batch_size})",
            **self._figures(speed, left),
            **self._last_validation,
        }
        self._screen.update(
            done=state.iteration, total=self._train_iters, loss=loss, figures=figures
        )

    def evaluation(
        self,
        state: RunState,
        losses: Mapping[str, float],
        *,
        prefix: str,
        set_name: str = "validation",
        write: bool = True,
    ) -> None:
        """Report a validation or test result.

        Args:
            state: Counters of the run.
            losses: Loss name -> mean.
            prefix: Text after "validation loss at".
            set_name: "validation" or "test".
            write: Also write scalars (training wants them, evaluation alone does not).
        """
        self._screen.line(format_validation(prefix, losses))
        if set_name == "validation":
            loss = losses.get(LM_LOSS, math.nan)
            text = f"{loss:.4f} (perplexity {perplexity(loss):.1f}) at {state.iteration}"
            self._last_validation = {"validation": text}
        if write and set_name == "validation":
            both = {f"{key} validation": value for key, value in losses.items()}
            if self._logging.log_validation_ppl_to_tensorboard:
                both |= {f"{key} validation ppl": perplexity(v) for key, v in losses.items()}
            # "X validation vs samples": the name that dashboards know.
            self._to_writers(state, both, {})
        if self._json_lines is not None:
            values = {f"{key} {set_name}": value for key, value in losses.items()}
            values |= {f"{key} {set_name} ppl": perplexity(v) for key, v in losses.items()}
            stamp = {"iteration": state.iteration, "time": time.time()}
            self._json_lines.write("evaluate", stamp | values)

"""Settings of the training loop, its logs and its profiler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Micro- and global batch sizes and the ramp-up between them."""

    GROUP: ClassVar[str] = "batch"

    micro_batch_size: int | None = flag(
        "--micro-batch-size",
        default=None,
        help="sequences per forward per replica; required, > 0",
        bounds="[1, inf)",
    )
    global_batch_size: int | None = flag(
        "--global-batch-size",
        default=None,
        help="sequences per optimizer step; default micro*dp; must be multiple of micro*dp",
        bounds="[1, inf)",
    )
    rampup_batch_size: tuple[int, ...] | None = flag(
        "--rampup-batch-size",
        default=None,
        nargs="*",
        help="START INCREMENT SAMPLES: grow the batch; only with --train-samples",
        bounds="[0, inf)",
    )
    decrease_batch_size_if_needed: bool = flag(
        "--decrease-batch-size-if-needed",
        default=False,
        help="round the running batch size down to a multiple of micro*dp instead of failing",
    )

    def faults(self, *, data_parallel_size: int = 1) -> Iterator[Fault]:
        """Rules of batch sizes that these values break.

        Args:
            data_parallel_size: Number of replicas that share a global batch.
        """
        yield from value_faults(self)
        if self.micro_batch_size is None:
            yield required("--micro-batch-size")
            return
        unit = self.micro_batch_size * data_parallel_size
        total = self.global_batch_size if self.global_batch_size is not None else unit
        if unit <= 0 or total <= 0:
            return
        given: dict[str, object] = {
            "--global-batch-size": total,
            "--micro-batch-size": self.micro_batch_size,
        }
        if data_parallel_size > 1:
            given["data-parallel size"] = data_parallel_size
        if total < unit:
            yield fault("MC0202", given, allowed=f"at least {unit}")
        elif total % unit and not self.decrease_batch_size_if_needed:
            yield fault("MC0201", given, allowed=f"a multiple of {unit}")
        if self.rampup_batch_size is not None:
            yield from self._rampup_faults(self.rampup_batch_size, total, unit)

    def _rampup_faults(self, rampup: tuple[int, ...], total: int, unit: int) -> Iterator[Fault]:
        given = {"--rampup-batch-size": " ".join(map(str, rampup)), "--global-batch-size": total}
        if len(rampup) != 3 or rampup[0] < 1 or rampup[1] < 1:
            yield fault("MC0203", given, allowed="START INCREMENT SAMPLES, the first two positive")
            return
        start, increment, _ = rampup
        if start >= total or (total - start) % increment:
            yield fault("MC0205", given, allowed=f"{total} = START + n * INCREMENT with n >= 1")
        uneven = start % unit or increment % unit
        if start < unit or (uneven and not self.decrease_batch_size_if_needed):
            yield fault("MC0206", given, allowed=f"multiples of {unit}")

    def resolved(self, *, data_parallel_size: int = 1) -> BatchConfig:
        """A copy with the global batch size filled: by default one micro-batch per replica.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults(data_parallel_size=data_parallel_size))
        assert self.micro_batch_size is not None  # faults() has refused None
        default = self.micro_batch_size * data_parallel_size
        return replace(self, global_batch_size=self.global_batch_size or default)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of the run, evaluation, exits, seeds and safety checks."""

    GROUP: ClassVar[str] = "training"

    check_for_nan_in_loss_and_grad: bool = flag(
        "--no-check-for-nan-in-loss-and-grad",
        default=True,
        help="skip NaN assertions (also off automatically for fp16 with dynamic scaling)",
    )
    empty_unused_memory_level: int = flag(
        "--empty-unused-memory-level",
        default=0,
        choices=(0, 1, 2),
        help="cuda empty_cache: 1 once per step, 2 also between forward-backward and optimizer",
    )
    deterministic_mode: bool = flag(
        "--deterministic-mode",
        default=False,
        help="only kernels that give the same bits every time",
    )
    calculate_per_token_loss: bool = flag(
        "--calculate-per-token-loss",
        default=False,
        help="divide by global non-masked token count rather than microbatch means",
    )
    train_sync_interval: int | None = flag(
        "--train-sync-interval",
        default=None,
        help="cuda synchronize every N iterations",
        bounds="[1, inf)",
    )
    train_iters: int | None = flag(
        "--train-iters",
        default=None,
        help="total iterations; exclusive with --train-samples",
        bounds="[0, inf)",
    )
    train_samples: int | None = flag(
        "--train-samples",
        default=None,
        help="total samples; exclusive with --train-iters",
        bounds="[1, inf)",
    )
    exit_interval: int | None = flag(
        "--exit-interval",
        default=None,
        help="save and exit when iteration % N == 0",
        bounds="[1, inf)",
    )
    exit_duration_in_mins: int | None = flag(
        "--exit-duration-in-mins",
        default=None,
        help="save and exit after N minutes (max over ranks)",
        bounds="[0, inf)",
    )
    exit_signal_handler: bool = flag(
        "--exit-signal-handler", default=False, help="on SIGTERM save and exit"
    )
    manual_gc: bool = flag("--manual-gc", default=False, help="disable automatic Python GC")
    manual_gc_interval: int = flag(
        "--manual-gc-interval", default=0, help="collect every N steps (0 never)", bounds="[0, inf)"
    )
    manual_gc_eval: bool = flag(
        "--no-manual-gc-eval", default=True, help="do not collect around evaluation"
    )
    seed: int = flag("--seed", default=1234, help="base seed", bounds="[1, 4294967295]")
    eval_iters: int = flag(
        "--eval-iters", default=100, help="batches per evaluation", bounds="[0, inf)"
    )
    eval_interval: int = flag(
        "--eval-interval", default=1000, help="iterations between evaluations", bounds="[1, inf)"
    )
    skip_train: bool = flag("--skip-train", default=False, help="evaluate only")
    trace_nan: bool = flag(
        "--trace-nan",
        default=False,
        help="when the loss or gradient norm is not finite, name the first layer or parameter "
        "with a non-finite value",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of the run's length that these values break."""
        yield from value_faults(self)
        given = {"--train-iters": self.train_iters, "--train-samples": self.train_samples}
        count = sum(value is not None for value in given.values())
        if count > 1 or (count == 0 and not self.skip_train):
            yield fault("MC0211", given, allowed="exactly one")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is logged, how often and where."""

    GROUP: ClassVar[str] = "logging"

    log_interval: int = flag(
        "--log-interval", default=100, help="iterations between log lines", bounds="[1, inf)"
    )
    tensorboard_dir: str | None = flag(
        "--tensorboard-dir", default=None, help="event directory; TensorBoard off when unset"
    )
    log_params_norm: bool = flag("--log-params-norm", default=False, help="add params norm")
    log_num_zeros_in_grad: bool = flag(
        "--log-num-zeros-in-grad", default=False, help="add zero-gradient count"
    )
    log_throughput: bool = flag("--log-throughput", default=False, help="add TFLOP/s per GPU")
    log_progress: bool = flag(
        "--log-progress", default=False, help="append to progress.txt in --save"
    )
    timing_log_level: int = flag(
        "--timing-log-level", default=0, choices=(0, 1, 2), help="0, 1 or 2"
    )
    timing_log_option: str = flag(
        "--timing-log-option",
        default="minmax",
        choices=("max", "minmax", "all"),
        help="reduction used in the timer report",
    )
    tensorboard_log_interval: int = flag(
        "--tensorboard-log-interval",
        default=1,
        help="steps between writer updates",
        bounds="[1, inf)",
    )
    tensorboard_queue_size: int = flag(
        "--tensorboard-queue-size", default=1000, help="event queue", bounds="[1, inf)"
    )
    log_timers_to_tensorboard: bool = flag(
        "--log-timers-to-tensorboard", default=False, help="timers as scalars"
    )
    log_loss_scale_to_tensorboard: bool = flag(
        "--no-log-loss-scale-to-tensorboard", default=True, help="drop loss-scale scalar"
    )
    log_validation_ppl_to_tensorboard: bool = flag(
        "--log-validation-ppl-to-tensorboard", default=False, help="ppl scalar"
    )
    log_memory_to_tensorboard: bool = flag(
        "--log-memory-to-tensorboard", default=False, help="memory scalars"
    )
    log_world_size_to_tensorboard: bool = flag(
        "--log-world-size-to-tensorboard", default=False, help="world size scalar"
    )
    wandb_project: str = flag("--wandb-project", default="", help="empty = W&B off")
    wandb_exp_name: str = flag("--wandb-exp-name", default="", help="required when project is set")
    wandb_save_dir: str = flag("--wandb-save-dir", default="", help="default <save>/wandb")
    logging_level: int | None = flag(
        "--logging-level",
        default=None,
        help="Python logging level, 10 (debug) to 50",
        bounds="[0, inf)",
    )
    config_logger_dir: str = flag("--config-logger-dir", default="", help="dump configs there")
    metrics_jsonl: str | None = flag(
        "--metrics-jsonl",
        default=None,
        help="append every logged metric to this file, one JSON object per line",
    )
    no_live_view: bool = flag(
        "--no-live-view", default=False, help="print plain log lines even on a terminal"
    )
    peak_tflops: float | None = flag(
        "--peak-tflops",
        default=None,
        help="peak TFLOP/s that MFU is relative to; default: known GPU value, measured on CPU",
        bounds="(0, inf)",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of logging that these values break."""
        yield from value_faults(self)
        if self.wandb_project and not self.wandb_exp_name:
            yield fault("MC0801", {"--wandb-project": self.wandb_project})


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Profiler window."""

    GROUP: ClassVar[str] = "profile"

    profile: bool = flag(
        "--profile",
        default=False,
        help="profile the steps from --profile-step-start to --profile-step-end",
    )
    profile_step_start: int = flag(
        "--profile-step-start", default=10, help="first profiled iteration", bounds="[0, inf)"
    )
    profile_step_end: int = flag(
        "--profile-step-end",
        default=12,
        help="iteration at which profiling stops",
        bounds="[1, inf)",
    )
    use_pytorch_profiler: bool = flag(
        "--use-pytorch-profiler",
        default=False,
        help="torch.profiler trace in --tensorboard-dir instead of an Nsight range",
    )
    profile_ranks: tuple[int, ...] = flag(
        "--profile-ranks",
        default=(0,),
        nargs="+",
        help="global ranks to profile",
        bounds="[0, inf)",
    )
    record_memory_history: bool = flag(
        "--record-memory-history",
        default=False,
        help="record allocator history and write a snapshot at the end of the profiled window",
    )
    memory_snapshot_path: str = flag(
        "--memory-snapshot-path", default="snapshot.pickle", help="file for the memory snapshot"
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of the profiler's window that these values break."""
        yield from value_faults(self)
        start, end = self.profile_step_start, self.profile_step_end
        if self.profile and end <= start:
            given = {"--profile-step-start": start, "--profile-step-end": end}
            yield fault("MC0802", given, allowed=f"an end of at least {start + 1}")

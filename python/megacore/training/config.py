"""Settings of the training loop, its logs and its profiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Micro- and global batch sizes and the ramp-up between them."""

    GROUP: ClassVar[str] = "batch"

    micro_batch_size: int | None = flag(
        "--micro-batch-size", default=None, help="sequences per forward per replica; required, > 0"
    )
    global_batch_size: int | None = flag(
        "--global-batch-size",
        default=None,
        help="sequences per optimizer step; default micro*dp; must be multiple of micro*dp",
    )
    rampup_batch_size: tuple[str, ...] | None = flag(
        "--rampup-batch-size",
        default=None,
        nargs="*",
        help="three ints START INCREMENT SAMPLES; only with sample-based training",
    )
    decrease_batch_size_if_needed: bool = flag(
        "--decrease-batch-size-if-needed",
        default=False,
        help="round the running batch size down to a multiple of micro*dp instead of failing",
    )


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
        help="deterministic kernels; forbids flash-attn and CE fusion; env NCCL_ALGO must be Tree, Ring, CollnetDirect, CollnetChain or ^NVLS",
    )
    calculate_per_token_loss: bool = flag(
        "--calculate-per-token-loss",
        default=False,
        help="divide by global non-masked token count rather than microbatch means",
    )
    train_sync_interval: int | None = flag(
        "--train-sync-interval", default=None, help="cuda synchronize every N iterations"
    )
    train_iters: int | None = flag(
        "--train-iters", default=None, help="total iterations; exclusive with --train-samples"
    )
    train_samples: int | None = flag(
        "--train-samples", default=None, help="total samples; exclusive with --train-iters"
    )
    exit_interval: int | None = flag(
        "--exit-interval", default=None, help="save and exit when iteration % N == 0"
    )
    exit_duration_in_mins: int | None = flag(
        "--exit-duration-in-mins",
        default=None,
        help="save and exit after N minutes (max over ranks)",
    )
    exit_signal_handler: bool = flag(
        "--exit-signal-handler", default=False, help="on SIGTERM save and exit"
    )
    manual_gc: bool = flag("--manual-gc", default=False, help="disable automatic Python GC")
    manual_gc_interval: int = flag(
        "--manual-gc-interval", default=0, help="collect every N steps (0 never)"
    )
    manual_gc_eval: bool = flag(
        "--no-manual-gc-eval", default=True, help="do not collect around evaluation"
    )
    seed: int = flag("--seed", default=1234, help="base seed")
    data_parallel_random_init: bool = flag(
        "--data-parallel-random-init",
        default=False,
        help="add 10*dp_rank to the seed so replicas differ",
    )
    eval_iters: int = flag("--eval-iters", default=100, help="batches per evaluation")
    eval_interval: int = flag(
        "--eval-interval", default=1000, help="iterations between evaluations"
    )
    skip_train: bool = flag("--skip-train", default=False, help="evaluate only")
    trace_nan: bool = flag(
        "--trace-nan",
        default=False,
        help="name the first layer or parameter with a non-finite value when the loss or gradient norm is not finite",
    )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is logged, how often and where."""

    GROUP: ClassVar[str] = "logging"

    log_interval: int = flag("--log-interval", default=100, help="iterations between log lines")
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
    barrier_with_L1_time: bool = flag(
        "--no-barrier-with-level-1-timing", default=True, help="no barrier before level-1 timers"
    )
    timing_log_option: str = flag(
        "--timing-log-option",
        default="minmax",
        choices=("max", "minmax", "all"),
        help="reduction used in the timer report",
    )
    tensorboard_log_interval: int = flag(
        "--tensorboard-log-interval", default=1, help="steps between writer updates"
    )
    tensorboard_queue_size: int = flag("--tensorboard-queue-size", default=1000, help="event queue")
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
        help="python logging level (env MEGATRON_LOGGING_LEVEL also read)",
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
    )


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Profiler window."""

    GROUP: ClassVar[str] = "profile"

    profile: bool = flag(
        "--profile",
        default=False,
        help="start/stop cudaProfiler (nsys) around the step window on --profile-ranks",
    )
    profile_step_start: int = flag(
        "--profile-step-start", default=10, help="first profiled iteration"
    )
    profile_step_end: int = flag(
        "--profile-step-end", default=12, help="iteration at which profiling stops"
    )
    use_pytorch_profiler: bool = flag(
        "--use-pytorch-profiler",
        default=False,
        help="torch.profiler with a TensorBoard trace handler in --tensorboard-dir instead of nsys",
    )
    profile_ranks: tuple[int, ...] = flag(
        "--profile-ranks", default=(0,), nargs="+", help="global ranks to profile"
    )
    record_memory_history: bool = flag(
        "--record-memory-history",
        default=False,
        help="record allocator history and write a snapshot at the end of the profiled window",
    )
    memory_snapshot_path: str = flag(
        "--memory-snapshot-path", default="snapshot.pickle", help="file for the memory snapshot"
    )

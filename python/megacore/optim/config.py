"""Settings of the optimizer, of its schedules and of mixed precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer kind, its constants, weight decay and clipping."""

    GROUP: ClassVar[str] = "optimizer"

    weight_decay: float = flag("--weight-decay", default=0.01, help="decoupled weight decay")
    start_weight_decay: float | None = flag(
        "--start-weight-decay",
        default=None,
        help="WD at step 0; must be unset for constant style, required otherwise",
    )
    end_weight_decay: float | None = flag(
        "--end-weight-decay", default=None, help="WD at the end; same rule"
    )
    weight_decay_incr_style: str = flag(
        "--weight-decay-incr-style",
        default="constant",
        choices=("constant", "linear", "cosine"),
        help="how WD moves from start to end over training",
    )
    clip_grad: float = flag("--clip-grad", default=1.0, help="global L2 norm clip (0 disables)")
    adam_beta1: float = flag("--adam-beta1", default=0.9, help="Adam beta1")
    adam_beta2: float = flag("--adam-beta2", default=0.999, help="Adam beta2")
    adam_eps: float = flag("--adam-eps", default=1e-08, help="Adam eps")
    sgd_momentum: float = flag("--sgd-momentum", default=0.9, help="momentum for sgd")
    optimizer: str = flag(
        "--optimizer",
        default="adam",
        choices=("adam", "sgd"),
        help="optimizer kind (adam has AdamW semantics)",
    )
    decoupled_lr: float | None = flag(
        "--decoupled-lr", default=None, help="separate LR for embedding and output layer parameters"
    )
    decoupled_min_lr: float | None = flag(
        "--decoupled-min-lr", default=None, help="floor for that LR"
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule."""

    GROUP: ClassVar[str] = "learning rate"

    lr: float | None = flag("--lr", default=None, help="peak learning rate")
    lr_decay_style: str = flag(
        "--lr-decay-style",
        default="linear",
        choices=("constant", "linear", "cosine", "inverse-square-root", "WSD"),
        help="schedule",
    )
    lr_wsd_decay_style: str = flag(
        "--lr-wsd-decay-style",
        default="exponential",
        choices=("exponential", "linear", "cosine"),
        help="anneal shape of WSD",
    )
    lr_decay_iters: int | None = flag(
        "--lr-decay-iters", default=None, help="decay horizon in iterations (default train iters)"
    )
    lr_decay_samples: int | None = flag(
        "--lr-decay-samples", default=None, help="decay horizon in samples (default train samples)"
    )
    lr_wsd_decay_samples: int | None = flag(
        "--lr-wsd-decay-samples", default=None, help="WSD anneal length in samples"
    )
    lr_wsd_decay_iters: int | None = flag(
        "--lr-wsd-decay-iters", default=None, help="WSD anneal length in iterations"
    )
    lr_warmup_fraction: float | None = flag(
        "--lr-warmup-fraction",
        default=None,
        help="warmup = fraction * decay steps; exclusive with explicit warmup",
    )
    lr_warmup_iters: int = flag("--lr-warmup-iters", default=0, help="warmup iterations")
    lr_warmup_samples: int = flag("--lr-warmup-samples", default=0, help="warmup samples")
    lr_warmup_init: float = flag("--lr-warmup-init", default=0.0, help="LR at step 0")
    min_lr: float = flag("--min-lr", default=0.0, help="floor; must be <= lr")
    override_opt_param_scheduler: bool = flag(
        "--override-opt_param-scheduler",
        default=False,
        help="take scheduler values from the command line instead of the checkpoint",
    )
    use_checkpoint_opt_param_scheduler: bool = flag(
        "--use-checkpoint-opt_param-scheduler",
        default=False,
        help="take scheduler values from the checkpoint silently",
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Parameter dtype and loss scaling."""

    GROUP: ClassVar[str] = "mixed precision"

    fp16: bool = flag("--fp16", default=False, help="half precision")
    bf16: bool = flag("--bf16", default=False, help="bfloat16; forces fp32 gradient accumulation")
    loss_scale: float | None = flag(
        "--loss-scale", default=None, help="static scale; None = dynamic for fp16"
    )
    initial_loss_scale: float = flag(
        "--initial-loss-scale", default=2.0**32, help="dynamic start value"
    )
    min_loss_scale: float = flag("--min-loss-scale", default=1.0, help="lower bound")
    loss_scale_window: float = flag(
        "--loss-scale-window", default=1000.0, help="clean steps before doubling"
    )
    hysteresis: int = flag("--hysteresis", default=2, help="bad steps tolerated before halving")
    accumulate_allreduce_grads_in_fp32: bool = flag(
        "--accumulate-allreduce-grads-in-fp32",
        default=False,
        help="main grads fp32 (automatic for bf16)",
    )
    fp16_lm_cross_entropy: bool = flag(
        "--fp16-lm-cross-entropy", default=False, help="CE in half; needs --fp16"
    )

"""Settings of the optimizer, of its schedules and of mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer kind, its constants, weight decay and clipping."""

    GROUP: ClassVar[str] = "optimizer"

    weight_decay: float = flag(
        "--weight-decay", default=0.01, help="decoupled weight decay", bounds="[0, inf)"
    )
    start_weight_decay: float | None = flag(
        "--start-weight-decay",
        default=None,
        help="WD at step 0; must be unset for constant style, required otherwise",
        bounds="[0, inf)",
    )
    end_weight_decay: float | None = flag(
        "--end-weight-decay", default=None, help="WD at the end; same rule", bounds="[0, inf)"
    )
    weight_decay_incr_style: str = flag(
        "--weight-decay-incr-style",
        default="constant",
        choices=("constant", "linear", "cosine"),
        help="how WD moves from start to end over training",
    )
    clip_grad: float = flag(
        "--clip-grad", default=1.0, help="global L2 norm clip (0 disables)", bounds="[0, inf)"
    )
    adam_beta1: float = flag("--adam-beta1", default=0.9, help="Adam beta1", bounds="[0, 1)")
    adam_beta2: float = flag("--adam-beta2", default=0.999, help="Adam beta2", bounds="[0, 1)")
    adam_eps: float = flag("--adam-eps", default=1e-08, help="Adam eps", bounds="(0, inf)")
    sgd_momentum: float = flag(
        "--sgd-momentum", default=0.9, help="momentum for sgd", bounds="[0, 1)"
    )
    optimizer: str = flag(
        "--optimizer",
        default="adam",
        choices=("adam", "sgd"),
        help="optimizer kind (adam has AdamW semantics)",
    )
    decoupled_lr: float | None = flag(
        "--decoupled-lr",
        default=None,
        help="separate LR for embedding and output layer parameters",
        bounds="[0, inf)",
    )
    decoupled_min_lr: float | None = flag(
        "--decoupled-min-lr", default=None, help="floor for that LR", bounds="[0, inf)"
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of weight decay and of the decoupled learning rate that these values break."""
        yield from value_faults(self)
        start, end = self.start_weight_decay, self.end_weight_decay
        given = {
            "--weight-decay-incr-style": self.weight_decay_incr_style,
            "--start-weight-decay": start,
            "--end-weight-decay": end,
        }
        if self.weight_decay_incr_style == "constant":
            if {start, end} - {None, self.weight_decay}:
                yield fault("MC0401", {**given, "--weight-decay": self.weight_decay})
        elif start is None or end is None:
            yield fault("MC0402", given)
        elif end < start:
            yield fault("MC0403", given, allowed=f"an end of at least {start}")
        if self.decoupled_min_lr is not None:
            given = {
                "--decoupled-lr": self.decoupled_lr,
                "--decoupled-min-lr": self.decoupled_min_lr,
            }
            if self.decoupled_lr is None:
                yield fault("MC0309", given)
            elif self.decoupled_min_lr > self.decoupled_lr:
                yield fault("MC0301", given, allowed=f"at most {self.decoupled_lr}")

    def resolved(self) -> OptimizerConfig:
        """A copy with the weight decay at the start and at the end filled.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        if self.weight_decay_incr_style != "constant":
            return self
        decay = self.weight_decay
        return replace(self, start_weight_decay=decay, end_weight_decay=decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule."""

    GROUP: ClassVar[str] = "learning rate"

    lr: float | None = flag("--lr", default=None, help="peak learning rate", bounds="[0, inf)")
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
        "--lr-decay-iters",
        default=None,
        help="decay horizon in iterations (default train iters)",
        bounds="[1, inf)",
    )
    lr_decay_samples: int | None = flag(
        "--lr-decay-samples",
        default=None,
        help="decay horizon in samples (default train samples)",
        bounds="[1, inf)",
    )
    lr_wsd_decay_samples: int | None = flag(
        "--lr-wsd-decay-samples",
        default=None,
        help="WSD anneal length in samples",
        bounds="[1, inf)",
    )
    lr_wsd_decay_iters: int | None = flag(
        "--lr-wsd-decay-iters",
        default=None,
        help="WSD anneal length in iterations",
        bounds="[1, inf)",
    )
    lr_warmup_fraction: float | None = flag(
        "--lr-warmup-fraction",
        default=None,
        help="warmup = fraction * decay steps; exclusive with explicit warmup",
        bounds="[0, 1)",
    )
    lr_warmup_iters: int = flag(
        "--lr-warmup-iters", default=0, help="warmup iterations", bounds="[0, inf)"
    )
    lr_warmup_samples: int = flag(
        "--lr-warmup-samples", default=0, help="warmup samples", bounds="[0, inf)"
    )
    lr_warmup_init: float = flag(
        "--lr-warmup-init", default=0.0, help="LR at step 0", bounds="[0, inf)"
    )
    min_lr: float = flag("--min-lr", default=0.0, help="floor; must be <= lr", bounds="[0, inf)")
    override_opt_param_scheduler: bool = flag(
        "--override-opt_param-scheduler",
        default=False,
        help="take the schedule from the command line instead of the checkpoint",
    )
    use_checkpoint_opt_param_scheduler: bool = flag(
        "--use-checkpoint-opt_param-scheduler",
        default=False,
        help="take the schedule from the checkpoint whatever the command line says",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules inside the schedule that these values break."""
        yield from value_faults(self)
        given: dict[str, object]
        if self.lr is not None and self.min_lr > self.lr:
            given = {"--min-lr": self.min_lr, "--lr": self.lr}
            yield fault("MC0301", given, allowed=f"at most {self.lr}")
        if self.lr is not None and self.lr_warmup_init > self.lr:
            given = {"--lr-warmup-init": self.lr_warmup_init, "--lr": self.lr}
            yield fault("MC0306", given, allowed=f"at most {self.lr}")
        if self.lr_warmup_fraction is not None and (self.lr_warmup_iters or self.lr_warmup_samples):
            given = {
                "--lr-warmup-fraction": self.lr_warmup_fraction,
                "--lr-warmup-iters": self.lr_warmup_iters,
                "--lr-warmup-samples": self.lr_warmup_samples,
            }
            yield fault("MC0304", given, allowed="one of them")
        if self.override_opt_param_scheduler and self.use_checkpoint_opt_param_scheduler:
            given = {
                "--override-opt_param-scheduler": "",
                "--use-checkpoint-opt_param-scheduler": "",
            }
            yield fault("MC0308", given, allowed="one of them")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Parameter dtype and loss scaling."""

    GROUP: ClassVar[str] = "mixed precision"

    fp16: bool = flag("--fp16", default=False, help="half precision")
    bf16: bool = flag("--bf16", default=False, help="bfloat16; forces fp32 gradient accumulation")
    loss_scale: float | None = flag(
        "--loss-scale",
        default=None,
        help="static scale; None = dynamic for fp16",
        bounds="[0, inf)",
    )
    initial_loss_scale: float = flag(
        "--initial-loss-scale", default=2.0**32, help="dynamic start value", bounds="(0, inf)"
    )
    min_loss_scale: float = flag(
        "--min-loss-scale", default=1.0, help="lower bound", bounds="(0, inf)"
    )
    loss_scale_window: float = flag(
        "--loss-scale-window", default=1000.0, help="clean steps before doubling", bounds="(0, inf)"
    )
    hysteresis: int = flag(
        "--hysteresis", default=2, help="bad steps tolerated before halving", bounds="[1, inf)"
    )
    accumulate_allreduce_grads_in_fp32: bool = flag(
        "--accumulate-allreduce-grads-in-fp32",
        default=False,
        help="sum and reduce gradients of --fp16 in fp32 too, as those of --bf16 always are",
    )
    gradient_accumulation_fusion: bool = flag(
        "--no-gradient-accumulation-fusion",
        default=True,
        help="make a gradient of each product with a weight, rounded to its dtype, and add that to "
        "the sums, instead of adding the product itself",
    )
    fp16_lm_cross_entropy: bool = flag(
        "--fp16-lm-cross-entropy", default=False, help="CE in half; needs --fp16"
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of mixed precision that these values break."""
        yield from value_faults(self)
        if self.fp16 and self.bf16:
            yield fault("MC0501", {"--fp16": "", "--bf16": ""}, allowed="one of them")
        if self.fp16_lm_cross_entropy and not self.fp16:
            yield fault("MC0502", {"--fp16-lm-cross-entropy": ""})
        if self.fp16 and not self.loss_scale and self.initial_loss_scale < self.min_loss_scale:
            given = {
                "--initial-loss-scale": self.initial_loss_scale,
                "--min-loss-scale": self.min_loss_scale,
            }
            yield fault("MC0504", given, allowed=f"at least {self.min_loss_scale}")

    def resolved(self) -> PrecisionConfig:
        """These values, checked; nothing is derived.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        return self

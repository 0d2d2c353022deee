"""Learning rate and weight decay as functions of the samples consumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from megacore.errors import CheckpointError, UsageError
from megacore.optim.config import OptimizerConfig, ScheduleConfig


class Rates(NamedTuple):
    """What an optimizer step takes from the schedule.

    Attributes:
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        decoupled_lr: Rate of the embedding and the output layer, None when it is not separate.
    """

    lr: float
    weight_decay: float
    decoupled_lr: float | None = None


class Difference(NamedTuple):
    """A setting of the schedule whose value is not the one in the checkpoint.

    Attributes:
        name: Key in the checkpoint.
        flags: The command-line flags that set it.
        checkpoint: Value in the checkpoint.
        command_line: Value that this run computed.
        used: The one in effect.
    """

    name: str
    flags: str
    checkpoint: object
    command_line: object
    used: object


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Constants of both schedules; all lengths are in samples.

    The names are the keys under which a checkpoint stores them.
    """

    max_lr: float
    min_lr: float
    init_lr: float
    lr_warmup_steps: float
    lr_decay_steps: int
    lr_decay_style: str
    lr_wsd_decay_style: str
    wsd_decay_steps: int | None
    start_wd: float
    end_wd: float
    wd_incr_steps: int
    wd_incr_style: str
    decoupled_max_lr: float | None
    decoupled_min_lr: float | None


_FLAGS = {
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "init_lr": "--lr-warmup-init",
    "lr_warmup_steps": "--lr-warmup-iters / --lr-warmup-samples / --lr-warmup-fraction",
    "lr_decay_steps": "--lr-decay-iters / --lr-decay-samples (default: length of the run)",
    "lr_decay_style": "--lr-decay-style",
    "lr_wsd_decay_style": "--lr-wsd-decay-style",
    "wsd_decay_steps": "--lr-wsd-decay-iters / --lr-wsd-decay-samples",
    "start_wd": "--weight-decay / --start-weight-decay",
    "end_wd": "--weight-decay / --end-weight-decay",
    "wd_incr_steps": "--train-iters / --train-samples",
    "wd_incr_style": "--weight-decay-incr-style",
    "decoupled_max_lr": "--decoupled-lr",
    "decoupled_min_lr": "--decoupled-min-lr",
}


def build_curve(
    schedule: ScheduleConfig,
    *,
    optimizer: OptimizerConfig,
    global_batch_size: int,
    train_iters: int | None = None,
    train_samples: int | None = None,
) -> Curve:
    """The constants of a run's schedules, with every length turned into samples.

    Args:
        schedule: Learning-rate settings.
        optimizer: Weight-decay and decoupled-rate settings.
        global_batch_size: Samples per iteration (after any ramp-up).
        train_iters: Length of the run in iterations; exactly one of the two is given.
        train_samples: Length of the run in samples.

    Raises:
        UsageError: The settings do not make a schedule; the message names the flags.
    """
    if (train_iters is None) == (train_samples is None):
        raise UsageError("exactly one of --train-iters and --train-samples must be given")
    if schedule.lr is None:
        raise UsageError("--lr must be given: there is no default learning rate")
    if train_iters is not None:
        total = train_iters * global_batch_size
        decay = (schedule.lr_decay_iters or train_iters) * global_batch_size
        warmup: float = schedule.lr_warmup_iters * global_batch_size
        wsd_iters = schedule.lr_wsd_decay_iters
        wsd = None if wsd_iters is None else wsd_iters * global_batch_size
    else:
        total = train_samples or 0
        decay = schedule.lr_decay_samples or total
        warmup = schedule.lr_warmup_samples
        wsd = schedule.lr_wsd_decay_samples
    if schedule.lr_warmup_fraction is not None:
        warmup = schedule.lr_warmup_fraction * decay
    constant_wd = optimizer.weight_decay_incr_style == "constant"
    start_wd, end_wd = optimizer.start_weight_decay, optimizer.end_weight_decay
    if not constant_wd and (start_wd is None or end_wd is None):
        raise UsageError(
            f"--weight-decay-incr-style {optimizer.weight_decay_incr_style} needs "
            "--start-weight-decay and --end-weight-decay"
        )
    decoupled_min = optimizer.decoupled_min_lr
    curve = Curve(
        max_lr=schedule.lr,
        min_lr=schedule.min_lr,
        init_lr=schedule.lr_warmup_init,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=schedule.lr_decay_style,
        lr_wsd_decay_style=schedule.lr_wsd_decay_style,
        wsd_decay_steps=wsd,
        start_wd=optimizer.weight_decay if constant_wd or start_wd is None else start_wd,
        end_wd=optimizer.weight_decay if constant_wd or end_wd is None else end_wd,
        wd_incr_steps=total,
        wd_incr_style=optimizer.weight_decay_incr_style,
        decoupled_max_lr=optimizer.decoupled_lr,
        decoupled_min_lr=schedule.min_lr if decoupled_min is None else decoupled_min,
    )
    _check_curve(curve)
    return curve


def _check_curve(curve: Curve) -> None:
    broken = []
    if not 0.0 <= curve.min_lr <= curve.max_lr:
        broken.append(f"--min-lr {curve.min_lr} must lie between 0 and --lr {curve.max_lr}")
    if curve.decoupled_max_lr is not None and not (
        0.0 <= (curve.decoupled_min_lr or 0.0) <= curve.decoupled_max_lr
    ):
        broken.append(
            f"--decoupled-min-lr {curve.decoupled_min_lr} must lie between 0 and "
            f"--decoupled-lr {curve.decoupled_max_lr}"
        )
    if not 0.0 <= curve.init_lr <= curve.max_lr:
        broken.append(
            f"--lr-warmup-init {curve.init_lr} must lie between 0 and --lr {curve.max_lr}"
        )
    if curve.lr_decay_steps <= 0:
        broken.append(f"the learning rate decays over {curve.lr_decay_steps} samples; expected > 0")
    elif not 0 <= curve.lr_warmup_steps < curve.lr_decay_steps:
        broken.append(
            f"the warmup of {curve.lr_warmup_steps:g} samples must be shorter than the decay "
            f"of {curve.lr_decay_steps} samples (lower --lr-warmup-iters, -samples or -fraction)"
        )
    if curve.lr_decay_style == "WSD":
        if curve.wsd_decay_steps is None:
            broken.append(
                "--lr-decay-style WSD needs --lr-wsd-decay-iters or --lr-wsd-decay-samples"
            )
        elif curve.wsd_decay_steps <= 0:
            broken.append(f"the WSD anneal takes {curve.wsd_decay_steps} samples; expected > 0")
    if curve.start_wd < 0.0 or curve.end_wd < curve.start_wd:
        broken.append(
            f"weight decay must go up from a value of at least 0, got {curve.start_wd} to "
            f"{curve.end_wd}"
        )
    if broken:
        raise UsageError("the schedule cannot be built:\n" + "\n".join(f"  - {b}" for b in broken))


def learning_rate(curve: Curve, samples: float, *, decoupled: bool = False) -> float:
    """Learning rate after `samples` consumed samples.

    Args:
        curve: Constants of the schedule.
        samples: Samples consumed by successful steps.
        decoupled: For the groups of `--decoupled-lr`.
    """
    high, low = curve.max_lr, curve.min_lr
    if decoupled:
        if curve.decoupled_max_lr is None:
            raise ValueError("this schedule has no decoupled learning rate")
        high, low = curve.decoupled_max_lr, curve.decoupled_min_lr or 0.0
    warmup, decay, style = curve.lr_warmup_steps, curve.lr_decay_steps, curve.lr_decay_style
    if warmup > 0 and samples <= warmup:
        return curve.init_lr + (high - curve.init_lr) * samples / warmup
    if style == "constant":
        return high
    if samples > decay:
        return low
    if style == "inverse-square-root":
        return max(low, high * math.sqrt(max(warmup, 1)) / math.sqrt(max(samples, 1)))
    progress = (samples - warmup) / (decay - warmup)
    if style == "linear":
        share = 1.0 - progress
    elif style == "cosine":
        share = 0.5 * (math.cos(math.pi * progress) + 1.0)
    elif style == "WSD":
        share = _wsd_share(curve, samples)
    else:
        raise UsageError(f"--lr-decay-style {style} is not known")
    return low + share * (high - low)


def _wsd_share(curve: Curve, samples: float) -> float:
    """Share of the rate in a warmup-stable-decay schedule: 1, then an anneal to 0."""
    anneal = curve.wsd_decay_steps or 0
    start = curve.lr_decay_steps - anneal
    if samples <= start:
        return 1.0
    progress = (samples - start) / anneal
    if curve.lr_wsd_decay_style == "linear":
        return 1.0 - progress
    if curve.lr_wsd_decay_style == "cosine":
        return 0.5 * (math.cos(math.pi * progress) + 1.0)
    return 2.0 * 0.5**progress - 1.0


def weight_decay(curve: Curve, samples: float) -> float:
    """Weight decay after `samples` consumed samples."""
    if samples > curve.wd_incr_steps or curve.wd_incr_style == "constant":
        return curve.end_wd
    progress = samples / curve.wd_incr_steps
    if curve.wd_incr_style == "linear":
        share = progress
    elif curve.wd_incr_style == "cosine":
        share = 0.5 * (math.cos(math.pi * (1.0 - progress)) + 1.0)
    else:
        raise UsageError(f"--weight-decay-incr-style {curve.wd_incr_style} is not known")
    return curve.start_wd + share * (curve.end_wd - curve.start_wd)


class ParamScheduler:
    """Position in a run's schedules.

    Args:
        curve: Constants of the schedules.
        samples: Samples consumed by successful steps so far.
    """

    def __init__(self, curve: Curve, *, samples: int = 0) -> None:
        self.curve = curve
        self.samples = samples

    @classmethod
    def build(
        cls,
        schedule: ScheduleConfig,
        *,
        optimizer: OptimizerConfig,
        global_batch_size: int,
        train_iters: int | None = None,
        train_samples: int | None = None,
    ) -> ParamScheduler:
        """A scheduler at its start; arguments and errors as `build_curve`."""
        return cls(
            build_curve(
                schedule,
                optimizer=optimizer,
                global_batch_size=global_batch_size,
                train_iters=train_iters,
                train_samples=train_samples,
            )
        )

    def rates(self) -> Rates:
        """Rates for the next step."""
        return Rates(
            lr=learning_rate(self.curve, self.samples),
            weight_decay=weight_decay(self.curve, self.samples),
            decoupled_lr=(
                None
                if self.curve.decoupled_max_lr is None
                else learning_rate(self.curve, self.samples, decoupled=True)
            ),
        )

    def advance(self, num_samples: int) -> None:
        """Moves on after a successful step; a skipped step does not call this."""
        self.samples += num_samples

    def state_values(self) -> dict[str, Any]:
        """Constants and position, as JSON values."""
        return {**asdict(self.curve), "num_steps": self.samples}

    def load_state(
        self,
        values: Mapping[str, Any],
        *,
        override: bool = False,
        use_checkpoint: bool = False,
    ) -> list[Difference]:
        """Takes the position, and checks or takes the constants, of a checkpoint.

        Args:
            values: What `state_values` gave.
            override: Keep this run's constants where they differ.
            use_checkpoint: Take the checkpoint's constants where they differ.

        Returns:
            The settings that differ, for a table: checkpoint, command line, used.

        Raises:
            UsageError: Settings differ and neither way was chosen; every one is listed.
            CheckpointError: The stored state lacks its position.
        """
        if override and use_checkpoint:
            raise UsageError(
                "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler exclude "
                "each other"
            )
        samples = values.get("num_steps")
        if not isinstance(samples, int) or samples < 0:
            raise CheckpointError(
                f"scheduler state: num_steps must be a count of samples, found {samples!r}"
            )
        stored = {f.name: values[f.name] for f in fields(Curve) if f.name in values}
        mine = asdict(self.curve)
        used = stored if use_checkpoint else mine
        differences = [
            Difference(name, _FLAGS[name], value, mine[name], used[name])
            for name, value in stored.items()
            if value != mine[name]
        ]
        if differences and not override and not use_checkpoint:
            raise UsageError(
                "the schedule of the checkpoint is not the one of the command line:\n"
                + difference_table(differences)
                + "\nPass --override-opt_param-scheduler to use the command line, or "
                "--use-checkpoint-opt_param-scheduler to use the checkpoint."
            )
        if use_checkpoint:
            self.curve = replace(self.curve, **stored)
        self.samples = samples
        return differences


def difference_table(differences: list[Difference]) -> str:
    """Text table of differing settings: name, checkpoint, command line, used, flags."""
    head = ("setting", "checkpoint", "command line", "used", "set by")
    rows = [
        (d.name, str(d.checkpoint), str(d.command_line), str(d.used), d.flags) for d in differences
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )

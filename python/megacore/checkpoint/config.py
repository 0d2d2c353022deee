"""Settings of saving and loading checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where and how checkpoints are saved and loaded."""

    GROUP: ClassVar[str] = "checkpoint"

    save: str | None = flag(
        "--save", default=None, help="output checkpoint directory; then --save-interval is required"
    )
    save_interval: int | None = flag(
        "--save-interval",
        "--persistent-save-interval",
        default=None,
        help="iterations between saves",
    )
    no_save_optim: bool = flag("--no-save-optim", default=False, help="leave optimizer state out")
    no_save_rng: bool = flag("--no-save-rng", default=False, help="leave RNG state out")
    load: str | None = flag("--load", default=None, help="checkpoint directory to read")
    no_load_optim: bool = flag(
        "--no-load-optim", default=False, help="ignore stored optimizer and scheduler"
    )
    no_load_rng: bool = flag("--no-load-rng", default=False, help="ignore stored RNG")
    finetune: bool = flag(
        "--finetune",
        default=False,
        help="load weights only, iteration 0 (automatic for 'release' checkpoints)",
    )
    pretrained_checkpoint: str | None = flag(
        "--pretrained-checkpoint",
        default=None,
        help="used when --load has no tracker file; switches --finetune on",
    )
    ckpt_step: int | None = flag(
        "--ckpt-step",
        default=None,
        help="parsed but never read at 0.9.0 (to load another iteration, edit the tracker file)",
    )
    use_checkpoint_args: bool = flag(
        "--use-checkpoint-args",
        default=False,
        help="overwrite architecture args from the checkpoint (needs --load); list in formats.md",
    )
    exit_on_missing_checkpoint: bool = flag(
        "--exit-on-missing-checkpoint",
        default=False,
        help="exit instead of random start when nothing is found",
    )
    ckpt_format: str = flag(
        "--ckpt-format",
        default="torch_dist",
        choices=("torch", "torch_dist", "zarr"),
        help="storage format; anything but torch is a 'distributed checkpoint'",
    )

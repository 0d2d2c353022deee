"""Settings of saving and loading checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from megacore.checkpoint.strictness import STRICTNESS
from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

# Directory of checkpoints of which only the newest is kept, in the one of the others.
NON_PERSISTENT = "non_persistent"
# Values of --ckpt-format that a run can have.
WRITTEN_FORMATS = ("torch_dist", "torch")


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
        bounds="[1, inf)",
    )
    save_retain_last: int | None = flag(
        "--save-retain-last",
        default=None,
        help="keep this many of the newest checkpoints in --save and remove older ones",
        bounds="[1, inf)",
    )
    save_retain_interval: int | None = flag(
        "--save-retain-interval",
        default=None,
        help="keep the newest checkpoint and those of iterations that are multiples of this, and "
        "remove the others; a multiple of --save-interval",
        bounds="[1, inf)",
    )
    async_save: bool = flag(
        "--async-save",
        default=False,
        help="training goes on after a copy in memory; another process writes the checkpoint",
    )
    overwrite_newer_checkpoints: bool = flag(
        "--overwrite-newer-checkpoints",
        default=False,
        help="save although --save holds a later iteration than this run starts from",
    )
    no_save_optim: bool = flag("--no-save-optim", default=False, help="leave optimizer state out")
    no_save_rng: bool = flag("--no-save-rng", default=False, help="leave RNG state out")
    load: str | None = flag("--load", default=None, help="checkpoint directory to read")
    no_load_optim: bool = flag(
        "--no-load-optim", default=False, help="ignore stored optimizer and scheduler"
    )
    no_load_rng: bool = flag("--no-load-rng", default=False, help="ignore stored RNG")
    non_persistent_save_interval: int | None = flag(
        "--non-persistent-save-interval",
        default=None,
        help="iterations between saves of which only the newest is kept, beside those of "
        "--save-interval",
        bounds="[1, inf)",
    )
    non_persistent_global_ckpt_dir: str | None = flag(
        "--non-persistent-global-ckpt-dir",
        default=None,
        help="where they go and are looked for; by default non_persistent in --save and --load",
    )
    ckpt_format: str = flag(
        "--ckpt-format",
        default="torch_dist",
        choices=("torch_dist", "torch", "zarr"),
        help="how checkpoints are stored; what --load holds is recognised",
    )
    ckpt_fully_parallel_save: bool = flag(
        "--no-ckpt-fully-parallel-save",
        default=True,
        help="let the first of the data-parallel processes write what all of them have",
    )
    ckpt_fully_parallel_load: bool = flag(
        "--ckpt-fully-parallel-load",
        default=False,
        help="read what several data-parallel processes need once, and hand it round among them",
    )
    dist_ckpt_strictness: str = flag(
        "--dist-ckpt-strictness",
        default="assume_ok_unexpected",
        choices=tuple(STRICTNESS),
        help="what is done about tensors that only the checkpoint or only the run has",
    )
    finetune: bool = flag(
        "--finetune",
        default=False,
        help="load weights only, and start at iteration 0",
    )
    pretrained_checkpoint: str | None = flag(
        "--pretrained-checkpoint",
        default=None,
        help="used when --load has no tracker file; switches --finetune on",
    )
    ckpt_step: int | None = flag(
        "--ckpt-step",
        default=None,
        help="iteration to load instead of the newest",
        bounds="[0, inf)",
    )
    use_checkpoint_args: bool = flag(
        "--use-checkpoint-args",
        default=False,
        help="take the architecture from the checkpoint; needs --load",
    )
    exit_on_missing_checkpoint: bool = flag(
        "--exit-on-missing-checkpoint",
        default=False,
        help="fail instead of starting from random weights when nothing is found",
    )
    ckpt_convert_format: str | None = flag(
        "--ckpt-convert-format",
        default=None,
        choices=("torch", "torch_dist", "zarr"),
        help="write what was loaded in this format, and exit; needs --load and --ckpt-convert-save",
    )
    ckpt_convert_save: str | None = flag(
        "--ckpt-convert-save",
        default=None,
        help="where that goes: into a directory of the name of the format in this one",
    )

    @property
    def non_persistent_save(self) -> Path | None:
        """Where non-persistent checkpoints are saved; None when none are."""
        if self.save is None or self.non_persistent_save_interval is None:
            return None
        return Path(self.non_persistent_global_ckpt_dir or Path(self.save, NON_PERSISTENT))

    @property
    def non_persistent_load(self) -> Path | None:
        """Where a run looks for a non-persistent checkpoint; None when nothing is loaded."""
        if self.load is None:
            return None
        return Path(self.non_persistent_global_ckpt_dir or Path(self.load, NON_PERSISTENT))

    def faults(self) -> Iterator[Fault]:
        """Rules of saving and loading that these values break."""
        yield from value_faults(self)
        if self.ckpt_format not in WRITTEN_FORMATS:
            more = "megacore does not write it; torch_dist is read by the same programs"
            given_format = {"--ckpt-format": self.ckpt_format}
            yield fault("MC0011", given_format, allowed=", ".join(WRITTEN_FORMATS), more=more)
        if self.save is not None and self.save_interval is None:
            yield fault("MC0701", {"--save": self.save}, allowed="--save-interval N")
        yield from self._operation_faults()
        yield from self._format_faults()
        asking = {
            "--use-checkpoint-args": self.use_checkpoint_args,
            "--exit-on-missing-checkpoint": self.exit_on_missing_checkpoint,
            "--ckpt-step": self.ckpt_step is not None,
            "--finetune": self.finetune,
        }
        given = {name: "" for name, there in asking.items() if there}
        if given and self.load is None and self.pretrained_checkpoint is None:
            yield fault("MC0702", given, allowed="--load DIR")

    def converting(self) -> CheckpointConfig:
        """The settings of a run that only converts a checkpoint: where it saves, and how."""
        assert self.ckpt_convert_save is not None
        assert self.ckpt_convert_format is not None
        return replace(
            self,
            save=str(Path(self.ckpt_convert_save, self.ckpt_convert_format)),
            save_interval=1,
            non_persistent_save_interval=None,
            ckpt_format=self.ckpt_convert_format,
            ckpt_convert_format=None,
            ckpt_convert_save=None,
            async_save=False,
            no_save_optim=self.no_save_optim or self.no_load_optim or self.finetune,
            no_save_rng=self.no_save_rng or self.no_load_rng or self.finetune,
        )

    def _format_faults(self) -> Iterator[Fault]:
        """Rules of formats and of the conversion between them."""
        if self.ckpt_convert_format is not None and self.ckpt_convert_format not in WRITTEN_FORMATS:
            more = "megacore does not write it; torch_dist is read by the same programs"
            given_format = {"--ckpt-convert-format": self.ckpt_convert_format}
            yield fault("MC0011", given_format, allowed=", ".join(WRITTEN_FORMATS), more=more)
        if self.ckpt_format == "torch" and self.async_save:
            yield fault("MC0751", {"--async-save": "", "--ckpt-format": "torch"})
        asked: dict[str, object] = {
            "--ckpt-convert-format": self.ckpt_convert_format,
            "--ckpt-convert-save": self.ckpt_convert_save,
            "--load": self.load,
        }
        converts = self.ckpt_convert_format is not None or self.ckpt_convert_save is not None
        if converts and None in asked.values():
            yield fault("MC0750", asked, allowed="all three")

    def _operation_faults(self) -> Iterator[Fault]:
        """Rules of how often is saved, and what is kept."""
        retain, interval = self.save_retain_interval, self.save_interval
        if retain is not None and interval is not None and retain % interval:
            given = {"--save-retain-interval": retain, "--save-interval": interval}
            yield fault("MC0730", given, allowed=f"a multiple of {interval}")
        beside = self.non_persistent_global_ckpt_dir
        if beside is not None and any(
            directory is not None and os.path.realpath(beside) == os.path.realpath(directory)
            for directory in (self.save, self.load)
        ):
            given_dir = {"--non-persistent-global-ckpt-dir": beside}
            yield fault("MC0731", given_dir, allowed="another directory")

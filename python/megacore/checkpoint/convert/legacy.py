"""Legacy models of Megatron-LM (`--use-legacy-models`), which have `torch` checkpoints only."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
from megacore.checkpoint.megatron.find import find_torch_checkpoint
from megacore.checkpoint.megatron.source import MegatronSource
from megacore.checkpoint.megatron.target import MegatronTarget
from megacore.errors import CheckpointError


def matches(path: Path) -> bool:
    """Whether there is a `torch` checkpoint; the kind of its model is seen when it is read."""
    return path.is_dir() and find_torch_checkpoint(path) is not None


def open_source(path: Path, options: SourceOptions) -> MegatronSource:
    """Opens a checkpoint of a legacy model; one of a core model is read too.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    found = find_torch_checkpoint(path, step=options.step)
    if found is None:
        raise CheckpointError(f"{path}: holds no checkpoint in the torch format (mp_rank_*)")
    return MegatronSource(found, options)


def make_target(options: TargetOptions) -> MegatronTarget:
    """A checkpoint of a legacy model, to be written.

    Raises:
        CheckpointError: Legacy models are not stored in the format that the options ask for.
    """
    if options.ckpt_format not in (None, "torch"):
        raise CheckpointError(
            f"legacy models have no checkpoints in the format {options.ckpt_format}: use torch"
        )
    return MegatronTarget(options, is_legacy=True)

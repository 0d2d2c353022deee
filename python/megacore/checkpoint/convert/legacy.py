"""Legacy models of Megatron-LM (`--use-legacy-models`), which have `torch` checkpoints only."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint.convert import core
from megacore.checkpoint.convert.model_stream import Source, SourceOptions, TargetOptions
from megacore.checkpoint.megatron.target import MegatronTarget
from megacore.errors import CheckpointError


def open_source(path: Path, options: SourceOptions) -> Source:
    """Opens a checkpoint; whether its model is a legacy or a core one is seen.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    return core.open_source(path, options)


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

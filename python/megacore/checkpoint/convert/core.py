"""Core models of Megatron-LM and of megacore."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint.convert.model_stream import Source, SourceOptions, Target, TargetOptions
from megacore.checkpoint.megatron.find import find_torch_checkpoint
from megacore.checkpoint.megatron.source import MegatronSource
from megacore.checkpoint.megatron.target import MegatronTarget
from megacore.errors import CheckpointError


def matches(path: Path) -> bool:
    """Whether there is a checkpoint of a core model in a format that can be read."""
    return path.is_dir() and find_torch_checkpoint(path) is not None


def open_source(path: Path, options: SourceOptions) -> Source:
    """Opens a checkpoint; in which format it is, is seen.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    found = find_torch_checkpoint(path, step=options.step)
    if found is None:
        raise CheckpointError(f"{path}: holds no checkpoint that can be read")
    return MegatronSource(found, options)


def make_target(options: TargetOptions) -> Target:
    """A checkpoint to be written.

    Raises:
        CheckpointError: It cannot be written in the format that the options ask for.
    """
    if options.ckpt_format not in (None, "torch"):
        raise CheckpointError(f"the format {options.ckpt_format} cannot be written yet: use torch")
    return MegatronTarget(options, is_legacy=False)

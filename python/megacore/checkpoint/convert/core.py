"""Core models of Megatron-LM and of megacore, in either of their formats."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint import layout
from megacore.checkpoint.convert.core_dist import DistSource, DistTarget
from megacore.checkpoint.convert.model_stream import Source, SourceOptions, Target, TargetOptions
from megacore.checkpoint.megatron.source import MegatronSource
from megacore.checkpoint.megatron.target import MegatronTarget
from megacore.errors import CheckpointError


def matches(path: Path) -> bool:
    """Whether there is a checkpoint, or something that wants to be one."""
    try:
        return path.is_dir() and layout.find_checkpoint(path) is not None
    except CheckpointError:
        return True


def open_source(path: Path, options: SourceOptions) -> Source:
    """Opens a checkpoint; in which format it is, is seen.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    found = layout.find_checkpoint(path, step=options.step)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint found there")
    if layout.has_rank_files(found):
        return MegatronSource(found, options)
    return DistSource(found, options)


def make_target(options: TargetOptions) -> Target:
    """A checkpoint to be written, in the format `torch` unless the options say otherwise.

    Raises:
        CheckpointError: It cannot be written in the format that the options ask for.
    """
    if options.ckpt_format in (None, "torch"):
        return MegatronTarget(options, is_legacy=False)
    if options.ckpt_format != "torch_dist":
        raise CheckpointError(
            f"the format {options.ckpt_format} cannot be written: use torch or torch_dist"
        )
    sizes = (options.pipeline, options.virtual, options.expert)
    if any(size not in (None, 1) for size in sizes):
        raise CheckpointError(
            "a torch_dist checkpoint is not cut, every layout of processes loads it: leave the "
            "sizes of pipeline, virtual stages and experts out, or write the format torch"
        )
    return DistTarget(options)

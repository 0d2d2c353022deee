"""Opens checkpoints of any format that megacore reads: which one a directory has is seen."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint import layout
from megacore.checkpoint.load import Checkpoint, iteration_in, read_common, stored_manifest
from megacore.checkpoint.manifest import read_manifest
from megacore.checkpoint.megatron.loading import RankCheckpoint
from megacore.errors import CheckpointError


def open_checkpoint(path: Path, *, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Opens the checkpoint in a directory of an iteration, or of a release.

    Args:
        path: The directory.
        share: (i, n): this process is the i-th of n that open it together. What cannot be verified
            while it is read is divided among them.

    Raises:
        CheckpointError: It is incomplete, damaged, or in a format that is not known.
    """
    if layout.has_rank_files(path):
        return RankCheckpoint(path, share=share)
    return Checkpoint(path)


def stored_iteration(path: Path) -> int:
    """Iterations completed when a checkpoint was saved, from its smallest files.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    if layout.has_rank_files(path):
        is_own = layout.is_complete(path)
        return read_manifest(path).iteration if is_own else layout.iteration_of(path.name)
    manifest = stored_manifest(path)
    return iteration_in(path, manifest, {} if manifest else read_common(path, None))


def load_checkpoint(directory: str | Path, *, step: int | None = None) -> Checkpoint:
    """Opens the checkpoint that a directory's tracker points at.

    Args:
        directory: What `--load` names.
        step: Iteration to read instead.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    path = layout.find_checkpoint(directory, step=step)
    if path is None:
        raise CheckpointError(f"{directory}: no checkpoint found there")
    return open_checkpoint(path)

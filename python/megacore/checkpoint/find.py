"""Finds a checkpoint by its own directory, or by the one that it was saved in."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint import layout
from megacore.errors import CheckpointError


def locate(path: Path, *, step: int | None = None) -> Path:
    """The directory that holds the files of a checkpoint.

    Args:
        path: That directory, or the one with the tracker.
        step: Iteration to take instead of the one in the tracker.

    Raises:
        CheckpointError: There is none.
    """
    if step is None and layout.is_readable(path):
        return path
    found = layout.find_checkpoint(path, step=step)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint found there")
    return found

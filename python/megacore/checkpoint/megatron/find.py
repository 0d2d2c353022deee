"""Which `torch` checkpoint a path names: a directory of checkpoints, or one of them."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint import layout
from megacore.checkpoint.megatron.rank_files import is_torch_checkpoint
from megacore.errors import CheckpointError


def find_torch_checkpoint(path: Path, *, step: int | None = None) -> Path | None:
    """The directory with the files of the ranks, None when there is none in this format.

    Args:
        path: What `--load` names, or one iteration in it.
        step: Iteration to take instead of the newest.

    Raises:
        CheckpointError: The tracker or `step` wants an iteration that is not there.
    """
    if is_torch_checkpoint(path):
        if step is not None and path.name != layout.iteration_name(step):
            raise CheckpointError(f"{path}: iteration {step} was asked for, but this is another")
        return path
    if not path.is_dir():
        return None
    there = [i for i in layout.iterations(path) if is_torch_checkpoint(_iteration(path, i))]
    tracked = layout.read_tracker(path)
    if step is None and tracked == layout.RELEASE:
        release = path / layout.RELEASE
        return release if is_torch_checkpoint(release) else None
    wanted = tracked if step is None else step
    if wanted is None:
        return _iteration(path, max(there)) if there else None
    found = _iteration(path, int(wanted))
    if is_torch_checkpoint(found):
        return found
    if there and not found.exists():
        raise CheckpointError(f"{found}: not found; iterations there: {', '.join(map(str, there))}")
    return None


def _iteration(path: Path, iteration: int) -> Path:
    return path / layout.iteration_name(iteration)

"""Which checkpoints of a run are kept, and which go when there are newer ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megacore.checkpoint import layout


@dataclass(frozen=True)
class Retention:
    """What is kept of the checkpoints of one directory.

    Attributes:
        last: Keep this many of the newest (at least one); None keeps all of them.
        interval: Keep the newest, and those whose iteration is a multiple of this; None keeps all.

    With both, a checkpoint is kept when one of the two keeps it.
    """

    last: int | None = None
    interval: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever removed."""
        return self.last is None and self.interval is None

    def superseded(self, iterations: Sequence[int]) -> list[int]:
        """The iterations that are not kept.

        Args:
            iterations: Of all complete checkpoints up to the newest one.
        """
        if self.keeps_all:
            return []
        ordered = sorted(iterations)
        newest = set(ordered[-max(1, self.last or 1) :])
        return [i for i in ordered if i not in newest and not self._is_milestone(i)]

    def _is_milestone(self, iteration: int) -> bool:
        return self.interval is not None and iteration % self.interval == 0


def remove_superseded(directory: Path, newest: int, retention: Retention) -> None:
    """Removes older checkpoints, and only complete ones of this format.

    Args:
        directory: What `--save` names.
        newest: Iteration that has just been published; later ones are not looked at.
        retention: What is kept.

    Raises:
        OSError: Something could not be removed.
    """
    complete = [i for i in _own_iterations(directory) if i <= newest]
    _remove(directory, retention.superseded(complete))


def remove_before_saving(directory: Path, iteration: int, retention: Retention) -> list[int]:
    """Removes what would be removed anyway after this iteration is saved, to make room for it.

    The checkpoint that the tracker points at stays: until the new one is there, it is all that a
    restart has.

    Args:
        directory: What `--save` names.
        iteration: About to be saved.
        retention: What is kept.

    Returns:
        The iterations that were removed.

    Raises:
        OSError: Something could not be removed.
    """
    complete = [i for i in _own_iterations(directory) if i < iteration]
    latest = layout.latest_iteration(directory)
    doomed = [i for i in retention.superseded([*complete, iteration]) if i != latest]
    # Without a tracker the newest complete one is what a restart takes.
    doomed = [i for i in doomed if complete and i != complete[-1]]
    _remove(directory, doomed)
    return doomed


def _own_iterations(directory: Path) -> list[int]:
    """Iterations with a complete checkpoint that megacore wrote, in ascending order."""
    return [
        iteration
        for iteration in layout.iterations(directory)
        if layout.is_complete(directory / layout.iteration_name(iteration))
    ]


def _remove(directory: Path, iterations: Sequence[int]) -> None:
    for iteration in iterations:
        path = directory / layout.iteration_name(iteration)
        # First out of sight, in one step: nobody finds a checkpoint with half of its files.
        doomed = path.with_name(layout.REMOVING + path.name)
        os.rename(path, doomed)
        shutil.rmtree(doomed)

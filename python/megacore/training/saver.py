"""Where the checkpoints of a run are written: the ones to keep, and the newest beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from megacore.checkpoint import SaveDirectory
from megacore.checkpoint.config import CheckpointConfig
from megacore.checkpoint.pieces import Part


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """One checkpoint to write.

    Attributes:
        iteration: Completed iterations.
        tensors: As in `SaveDirectory.save`.
        parts: As in `SaveDirectory.save`.
        values: As in `SaveDirectory.save`.
        is_persistent: To be kept, and not only the newest of its kind.
        files: As in `SaveDirectory.write_files`, which then writes them instead of all the above.
    """

    iteration: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    parts: Mapping[str, Sequence[Part]]
    values: Mapping[str, Any]
    is_persistent: bool
    files: Mapping[str, Any] | None = None


class Saver(Protocol):
    """Writes checkpoints. All processes of a run make the same calls."""

    def path(self, *, is_persistent: bool) -> Path:
        """The directory that such checkpoints go to."""

    def prepare(self, parts: Sequence[Part]) -> None:
        """Finds what saving will need, before training starts.

        Args:
            parts: What this process will write, about.

        Raises:
            CheckpointError: It is not there.
        """

    def save(self, request: SaveRequest, saved: Callable[[], None]) -> None:
        """Writes a checkpoint, and calls `saved` when it is published.

        Raises:
            CheckpointError: It, or one before it, could not be written.
        """

    def poll(self) -> None:
        """Looks after what is being written; between any two iterations.

        Raises:
            CheckpointError: It could not be written.
        """

    def finish(self) -> None:
        """Waits until everything is published.

        Raises:
            CheckpointError: It could not be written.
        """


def save_paths(config: CheckpointConfig) -> list[Path]:
    """The directories that a run writes into: of persistent checkpoints, and of others if any."""
    assert config.save is not None
    beside = config.non_persistent_save
    return [Path(config.save), *([beside] if beside is not None else [])]


def retained(config: CheckpointConfig, *, is_persistent: bool) -> dict[str, int | None]:
    """What `SaveDirectory.save` is told about older checkpoints."""
    if not is_persistent:
        return {"retain_last": 1}
    return {
        "retain_last": config.save_retain_last,
        "retain_interval": config.save_retain_interval,
    }


class DirectSaver:
    """Writes checkpoints while training waits.

    Args:
        config: What is kept.
        directories: Claimed, in the order of `save_paths`.
    """

    def __init__(self, config: CheckpointConfig, directories: Sequence[SaveDirectory]) -> None:
        self._config = config
        self._directories = tuple(directories)

    def path(self, *, is_persistent: bool) -> Path:
        """The directory that such checkpoints go to."""
        return self._directories[0 if is_persistent else 1].path

    def prepare(self, parts: Sequence[Part]) -> None:
        """Nothing is needed but the disk, which every save looks at."""

    def save(self, request: SaveRequest, saved: Callable[[], None]) -> None:
        """Writes a checkpoint.

        Args:
            request: What to write.
            saved: Called when it is published.

        Raises:
            CheckpointError: It could not be written; what was there before is still valid.
        """
        directory = self._directories[0 if request.is_persistent else 1]
        kept = retained(self._config, is_persistent=request.is_persistent)
        overwrite = self._config.overwrite_newer_checkpoints
        if request.files is not None:
            directory.write_files(
                request.iteration, request.files, overwrite_newer=overwrite, **kept
            )
        else:
            directory.save(
                request.iteration,
                tensors=request.tensors,
                parts=request.parts,
                values=request.values,
                overwrite_newer=overwrite,
                **kept,
            )
        saved()

    def poll(self) -> None:
        """Nothing is ever being written between two calls."""

    def finish(self) -> None:
        """Everything is published already."""

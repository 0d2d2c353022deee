"""Writing checkpoints: all or nothing, whenever the process or the machine stops."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash
from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.claim import Claim
from megacore.checkpoint.durable import free_bytes, replace_file, sync_directory, write_file
from megacore.checkpoint.metadata import Metadata
from megacore.checkpoint.tensor_file import FileRecord, file_bytes, write_tensors
from megacore.errors import CheckpointError

_log = logging.getLogger(__name__)

_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What the file system itself needs for the new entries, and slack for others who write meanwhile.
_SPACE_MARGIN = 1 << 20


class SaveDirectory:
    """A directory that this process alone writes checkpoints into.

    Opening it claims it, and clears away what dead writers left half-done. Use it as a context
    manager for as long as a run lasts, so that no second run can start writing there.

    Args:
        directory: What `--save` names; made if missing.
        wait_s: How long to wait for another process that holds it.

    Raises:
        CheckpointError: The directory cannot be made, or another process is writing there.
    """

    def __init__(self, directory: str | Path, *, wait_s: float = 5.0) -> None:
        self.path = Path(directory)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim = Claim(self.path, wait_s=wait_s)
            if self._claim.exclusive:
                _tidy(self.path)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be used to save checkpoints: {error.strerror} "
                f"({error.filename})"
            ) from error

    def __enter__(self) -> SaveDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the directory back."""
        self._claim.release()

    def refuse_newer(self, start_iteration: int) -> None:
        """Makes sure that a run starting at an iteration does not bury a later state.

        The rule: a run may write into a directory whose newest iteration is not after the one the
        run starts from (0 for a fresh start or for `--finetune`).

        Raises:
            CheckpointError: The directory holds a later iteration; says what to do.
        """
        newest = layout.latest_iteration(self.path)
        if newest is not None and newest > start_iteration:
            raise CheckpointError(
                f"--save {self.path} already holds iteration {newest}, but this run starts at "
                f"iteration {start_iteration} and would overwrite it. Pass --load {self.path} to "
                "continue from there, choose another --save, or pass "
                "--overwrite-newer-checkpoints to write over it"
            )

    def save(
        self,
        iteration: int,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        values: Mapping[str, Any],
        overwrite_newer: bool = False,
        retain_last: int | None = None,
    ) -> Path:
        """Writes one checkpoint and points the tracker at it.

        Args:
            iteration: Completed iterations.
            tensors: Group ("model", "optimizer", "rng") -> name -> tensor on any device.
            values: Everything else, as JSON values.
            overwrite_newer: Write although the tracker points at a later iteration.
            retain_last: Afterwards remove all but this many of the iterations up to this one.

        Returns:
            The directory that was written.

        Raises:
            CheckpointError: No space, an unwritable directory, or a later iteration there. What
                the directory held before is still there, and still what the tracker points at.
            ValueError, TypeError: A tensor or value cannot be stored.
        """
        state = json.dumps(dict(values), allow_nan=False).encode()
        _check_groups(tensors)
        num_bytes = len(state) + sum(file_bytes(group) for group in tensors.values())
        final = self.path / layout.iteration_name(iteration)
        scratch = self.path / f"{layout.WRITING}{final.name}-{secrets.token_hex(4)}"
        try:
            if not overwrite_newer:
                _check_newest(self.path, iteration)
            _check_replaceable(final)
            _check_space(self.path, num_bytes)
            _restore_displaced(self.path)
            _write(scratch, iteration, tensors, state)
            _publish(scratch, final)
            replace_file(self.path / layout.TRACKER, str(iteration).encode())
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(
                f"{final}: could not be written: {error.strerror} "
                f"({error.filename or scratch.name}); the tracker still points at what was there"
            ) from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        _clear_superseded(final, iteration, retain_last)
        return final


def save_checkpoint(
    directory: str | Path,
    iteration: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    overwrite_newer: bool = False,
    retain_last: int | None = None,
) -> Path:
    """Writes one checkpoint into a directory; arguments and errors as `SaveDirectory.save`."""
    with SaveDirectory(directory) as target:
        return target.save(
            iteration,
            tensors=tensors,
            values=values,
            overwrite_newer=overwrite_newer,
            retain_last=retain_last,
        )


def _check_groups(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group in tensors:
        if not _GROUP_NAME.fullmatch(group):
            raise ValueError(f"tensor group {group!r}: expected lower-case letters, digits and _")


def _check_newest(directory: Path, iteration: int) -> None:
    newest = layout.latest_iteration(directory)
    if newest is not None and newest > iteration:
        raise CheckpointError(
            f"{directory} holds iteration {newest}; iteration {iteration} is not written over it "
            "(--overwrite-newer-checkpoints would)"
        )


def _check_replaceable(final: Path) -> None:
    if not final.exists() or layout.is_complete(final):
        return
    if not final.is_dir() or any(final.iterdir()):
        kind = layout.foreign_format(final) or "unknown or damaged"
        raise CheckpointError(
            f"{final}: exists already and is a {kind} checkpoint; it will not be overwritten. "
            "Move it away, or choose another --save"
        )


def _check_space(directory: Path, needed: int) -> None:
    free = free_bytes(directory)
    if needed + _SPACE_MARGIN > free:
        raise CheckpointError(
            f"{directory}: not enough space for the checkpoint: it takes {_size_text(needed)}, "
            f"{_size_text(free)} are free; nothing was written"
        )


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"


def _write(
    scratch: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], state: bytes
) -> None:
    os.mkdir(scratch)
    files = {}
    for group, members in tensors.items():
        name = group + layout.TENSORS_SUFFIX
        files[name] = write_tensors(scratch / name, members)
    write_file(scratch / layout.STATE, state)
    files[layout.STATE] = FileRecord(len(state), xxhash.xxh3_64_hexdigest(state))
    write_file(scratch / layout.METADATA, Metadata(iteration, files).encode())
    sync_directory(scratch)


def _publish(scratch: Path, final: Path) -> None:
    """Gives a finished directory its name.

    A directory cannot be renamed over another one in a portable way, so an older version of the
    same iteration steps aside first, to a name where readers look for it too.
    """
    if final.exists():
        aside = final.with_name(layout.REPLACED + final.name)
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(final, aside)
    os.rename(scratch, final)
    sync_directory(final.parent)


def _clear_superseded(final: Path, newest: int, retain_last: int | None) -> None:
    """Removes what the new checkpoint makes superfluous; a failure costs space, not the run."""
    try:
        aside = final.with_name(layout.REPLACED + final.name)
        if aside.exists():
            shutil.rmtree(aside)
        if retain_last is not None:
            _retain(final.parent, newest, retain_last)
    except OSError as error:
        _log.warning("%s: older checkpoints could not be removed: %s", final.parent, error)


def _retain(directory: Path, newest: int, count: int) -> None:
    """Removes older checkpoints, and only complete ones of this format."""
    old = [i for i in layout.complete_iterations(directory) if i <= newest]
    for iteration in old[: -max(count, 1)]:
        path = directory / layout.iteration_name(iteration)
        # First out of sight, in one step: nobody finds a checkpoint with half of its files.
        doomed = path.with_name(layout.REMOVING + path.name)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _tidy(directory: Path) -> None:
    """Removes what writers that died have left half-done. Only for the holder of the claim."""
    for entry in sorted(directory.iterdir()):
        superseded = entry.name.startswith(layout.REPLACED) and layout.is_complete(
            entry.with_name(entry.name.removeprefix(layout.REPLACED))
        )
        if superseded or entry.name.startswith((layout.WRITING, layout.REMOVING)):
            shutil.rmtree(entry, ignore_errors=True)


def _restore_displaced(directory: Path) -> None:
    """Gives iterations back their names that a writer moved aside before it died.

    Not done when the directory is claimed: the run may be about to read from the name that
    `find_checkpoint` gave it.
    """
    for entry in directory.glob(f"{layout.REPLACED}*"):
        final = entry.with_name(entry.name.removeprefix(layout.REPLACED))
        if not final.exists():
            os.rename(entry, final)

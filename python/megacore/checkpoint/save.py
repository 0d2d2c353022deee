"""Writing checkpoints: all or nothing, whenever the process or the machine stops."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from megacore.checkpoint import layout
from megacore.checkpoint.claim import Claim
from megacore.checkpoint.container import finish, stacks_of, structure, write_chunks
from megacore.checkpoint.content import Content, collect
from megacore.checkpoint.megatron.saving import FileStreams, finish_files
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.retention import Retention, remove_before_saving, remove_superseded
from megacore.checkpoint.writers import Alone, Writers, together
from megacore.durable import free_bytes, replace_file, sync_directory
from megacore.errors import CheckpointError

_log = logging.getLogger(__name__)

# What the file system itself needs for the new entries, and slack for others who write meanwhile.
_SPACE_MARGIN = 1 << 20
# What the file formats put around the data of a chunk, and say about it elsewhere.
_BYTES_PER_CHUNK = 2048


class SaveDirectory:
    """A directory that this process, or the processes of this run, alone write checkpoints into.

    Opening it claims it, and clears away what dead writers left half-done. Use it as a context
    manager for as long as a run lasts, so that no second run can start writing there.

    Args:
        directory: What `--save` names; made if missing.
        wait_s: How long to wait for another process that holds it.
        writers: The processes that write each checkpoint together; the first one claims the
            directory for all. All of them must make the same calls.

    Raises:
        CheckpointError: The directory cannot be made, or another process is writing there.
    """

    def __init__(
        self, directory: str | Path, *, wait_s: float = 5.0, writers: Writers | None = None
    ) -> None:
        self.path = Path(directory)
        self._writers = writers or Alone()
        self._claim: Claim | None = None
        together(self._writers, lambda: self._open(wait_s) if self._leads else None)

    @property
    def _leads(self) -> bool:
        return self._writers.rank == 0

    def _open(self, wait_s: float) -> None:
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
        if self._claim is not None:
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
        parts: Mapping[str, Sequence[Part]] | None = None,
        overwrite_newer: bool = False,
        retain_last: int | None = None,
        retain_interval: int | None = None,
    ) -> Path:
        """Writes one checkpoint and points the tracker at it.

        Args:
            iteration: Completed iterations.
            tensors: Group ("model", "optimizer", "rng") -> name -> tensor on any device. Of
                several writers each gives what it alone is to write.
            values: Everything else, as JSON values; those of the first writer are stored.
            parts: Group -> parts of tensors; with those of all writers every tensor is whole.
            overwrite_newer: Write although the tracker points at a later iteration.
            retain_last: Afterwards remove all but this many of the iterations up to this one.
            retain_interval: Afterwards remove all but this one and the multiples of this; with
                `retain_last` too, what one of the two keeps is kept.

        Returns:
            The directory that was written.

        Raises:
            CheckpointError: No space, an unwritable directory, or a later iteration there. What
                the directory held before is still there, and still what the tracker points at.
            ValueError, TypeError: A tensor or value cannot be stored.
        """
        content = collect(iteration, tensors=tensors, values=values, parts=parts)
        return self.write(
            content,
            overwrite_newer=overwrite_newer,
            retain_last=retain_last,
            retain_interval=retain_interval,
        )

    def write(
        self,
        content: Content,
        *,
        overwrite_newer: bool = False,
        retain_last: int | None = None,
        retain_interval: int | None = None,
    ) -> Path:
        """Writes one checkpoint of what `content.collect` or `content.snapshot` gave.

        Args:
            content: Of this process.
            overwrite_newer: As in `save`.
            retain_last: As in `save`.
            retain_interval: As in `save`.

        Returns:
            As `save`.

        Raises:
            CheckpointError: As `save`.
        """
        rank = self._writers.rank
        about = self._writers.exchange([_needed(content), structure(content)])
        stacks = stacks_of(rows for _, rows in about)
        return self._put(
            content.iteration,
            needed=sum(num_bytes for num_bytes, _ in about),
            write=lambda scratch: write_chunks(scratch, content, stacks, rank),
            finish=lambda scratch, files: finish(scratch, content, files),
            overwrite_newer=overwrite_newer,
            retention=Retention(retain_last, retain_interval),
        )

    def write_files(
        self,
        iteration: int,
        files: Mapping[str, Any],
        *,
        overwrite_newer: bool = False,
        retain_last: int | None = None,
        retain_interval: int | None = None,
    ) -> Path:
        """Writes one checkpoint in the format `torch`.

        Args:
            iteration: Completed iterations.
            files: Of this process: name inside the checkpoint -> what the file holds.
            overwrite_newer: As in `save`.
            retain_last: As in `save`.
            retain_interval: As in `save`.

        Returns:
            As `save`.

        Raises:
            CheckpointError: As `save`.
        """
        streams = FileStreams(files)
        return self._put(
            iteration,
            needed=sum(self._writers.exchange(streams.num_bytes)),
            write=streams.write,
            finish=lambda scratch, records: finish_files(scratch, iteration, records),
            overwrite_newer=overwrite_newer,
            retention=Retention(retain_last, retain_interval),
        )

    def _put(
        self,
        iteration: int,
        *,
        needed: int,
        write: Callable[[Path], Any],
        finish: Callable[[Path, list[Any]], None],
        overwrite_newer: bool,
        retention: Retention,
    ) -> Path:
        """Lets all writers write into a scratch directory, and publishes it.

        Args:
            iteration: Completed iterations.
            needed: Bytes that all of them will write.
            write: Writes the files of this process; returns what `finish` is told.
            finish: On the first writer: completes the directory, with what all of them returned.
            overwrite_newer: As in `save`.
            retention: What is kept of older ones.
        """
        writers, final = self._writers, self.path / layout.iteration_name(iteration)
        scratch = final.with_name(f"{layout.WRITING}{final.name}-{secrets.token_hex(4)}")

        def prepare() -> str | None:
            if not self._leads:
                return None
            if not overwrite_newer:
                _check_newest(self.path, iteration)
            _check_replaceable(final)
            _make_space(self.path, needed, iteration, retention)
            _restore_displaced(self.path)
            os.mkdir(scratch)
            return scratch.name

        def publish() -> None:
            if self._leads:
                finish(scratch, files)
                _publish(scratch, final)
                replace_file(self.path / layout.TRACKER, str(iteration).encode())

        try:
            scratch = self.path / together(writers, _reported(prepare, final))[0]
            files = together(writers, _reported(lambda: write(scratch), final))
            together(writers, _reported(publish, final))
        except BaseException:
            if self._leads:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        if self._leads:
            _clear_superseded(final, iteration, retention)
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


def _needed(content: Content) -> int:
    """Bytes that a process writes, about: its tensors with what is around them, and the values."""
    return content.num_bytes + _BYTES_PER_CHUNK * len(content.chunks) + 2 * len(content.state)


def _reported(work: Callable[[], Any], final: Path) -> Callable[[], Any]:
    """`work`, whose failures of the file system become messages about the checkpoint."""

    def run() -> Any:
        try:
            return work()
        except OSError as error:
            name = Path(error.filename).name if error.filename else "a file of it"
            raise CheckpointError(
                f"{final}: could not be written: {error.strerror} ({name}); the tracker still "
                "points at what was there"
            ) from error

    return run


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


def _make_space(directory: Path, needed: int, iteration: int, retention: Retention) -> None:
    """Sees to it that there is enough space; what would go after the save goes before it."""
    if needed + _SPACE_MARGIN > free_bytes(directory):
        removed = remove_before_saving(directory, iteration, retention)
        if removed:
            _log.warning("%s: removed iterations %s to make space", directory, removed)
    free = free_bytes(directory)
    if needed + _SPACE_MARGIN > free:
        raise CheckpointError(
            f"{directory}: not enough space for the checkpoint: it takes {_size_text(needed)}, "
            f"{_size_text(free)} are free; nothing was written"
        )


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"


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


def _clear_superseded(final: Path, newest: int, retention: Retention) -> None:
    """Removes what the new checkpoint makes superfluous; a failure costs space, not the run."""
    try:
        aside = final.with_name(layout.REPLACED + final.name)
        if aside.exists():
            shutil.rmtree(aside)
        remove_superseded(final.parent, newest, retention)
    except OSError as error:
        _log.warning("%s: older checkpoints could not be removed: %s", final.parent, error)


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

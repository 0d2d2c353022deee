"""A directory that is written under a hidden name and gets its own name when it is complete.

DIR/.converting-NAME/.megacore.lock    held by the process that writes
DIR/.converting-NAME/content           what is being written
DIR/.converting-NAME/replaced          the old DIR/NAME, while the new one takes its place
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from types import TracebackType

from megacore.checkpoint.claim import Claim
from megacore.durable import free_bytes, sync_directory
from megacore.errors import CheckpointError

_PREFIX = ".converting-"


class Publication:
    """A context that gives an empty scratch directory, and publishes it when it ends well.

    When the block raises, or the process ends, `destination` is as it was: the scratch directory
    is removed now, or after a kill by the next conversion to the same place.

    Args:
        destination: Directory to make; its parents are made too.
        overwrite: Replace what is there, if that is a checkpoint or empty.
        num_bytes: What will be written at least.

    Raises:
        CheckpointError: Something is there already, another process converts to the same place,
            there is not enough space, or the directory cannot be written.
    """

    def __init__(self, destination: Path, *, overwrite: bool, num_bytes: int) -> None:
        # A link stays a link; the rename then happens where its target is.
        self._destination = Path(os.path.realpath(destination))
        self._shown = destination
        self._overwrite = overwrite
        self._num_bytes = num_bytes
        self._home = self._destination.parent / f"{_PREFIX}{self._destination.name}"
        self._content = self._home / "content"
        self._replaced = self._home / "replaced"
        self._claim: Claim | None = None

    def __enter__(self) -> Path:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._claim = Claim(self._home, wait_s=0.5)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self._shown}: another process is writing there: {error}"
            ) from error
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._recover()
            self._check()
            self._content.mkdir()
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        return self._content

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._leave()
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def _recover(self) -> None:
        """Undoes or completes what a killed process left."""
        if self._replaced.exists():
            if self._destination.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self._destination)
        if self._content.exists():
            shutil.rmtree(self._content)

    def _check(self) -> None:
        there = self._destination
        if there.exists() and not there.is_dir():
            raise CheckpointError(f"{self._shown}: there is a file of that name")
        if there.is_dir() and any(there.iterdir()):
            if not self._overwrite:
                raise CheckpointError(
                    f"{self._shown}: exists and is not empty; choose another directory, or pass "
                    "--overwrite to replace it"
                )
            if not is_checkpoint(there):
                raise CheckpointError(
                    f"{self._shown}: exists and holds something else than a checkpoint: it is not "
                    "replaced, even with --overwrite; choose another directory"
                )
        free = free_bytes(self._home)
        if free < self._num_bytes:
            raise CheckpointError(
                f"{self._shown}: not enough space: {self._num_bytes} bytes are needed, {free} are "
                "free"
            )

    def _publish(self) -> None:
        for folder, _, names in os.walk(self._content):
            for name in names:
                _flush(Path(folder, name))
            sync_directory(Path(folder))
        there = self._destination
        if not (there.is_dir() and any(there.iterdir())):
            self._content.rename(there)
        elif not exchange(self._content, there):
            there.rename(self._replaced)
            self._content.rename(there)
        sync_directory(there.parent)

    def _leave(self) -> None:
        if self._replaced.exists() and not self._destination.exists():
            self._replaced.rename(self._destination)
        # The lock goes last: whoever gets it finds nothing left to undo.
        shutil.rmtree(self._content, ignore_errors=True)
        shutil.rmtree(self._replaced, ignore_errors=True)
        shutil.rmtree(self._home, ignore_errors=True)
        if self._claim is not None:
            self._claim.release()

    def _failure(self, error: OSError) -> CheckpointError:
        place = error.filename or self._shown
        return CheckpointError(
            f"{self._shown}: failed: {place}: {error.strerror}; nothing was published"
        )


def exchange(first: Path, second: Path) -> bool:
    """Gives two directories each other's name, in one step; False where that cannot be done.

    Source: renameat2(2) with RENAME_EXCHANGE, of Linux, which Python does not have.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = call(here, os.fsencode(first), here, os.fsencode(second), swap)
    return done == 0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory looks like what some conversion or training wrote."""
    marks = ("latest_checkpointed_iteration.txt", "config.json", "iter_*", "mp_rank_*", ".metadata")
    return any(next(directory.glob(mark), None) is not None for mark in marks)

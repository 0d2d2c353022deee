"""The exclusive right to write into one save directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from megacore.errors import CheckpointError

LOCK = ".megacore.lock"
_POLL_S = 0.1

# Files that this process has locked: (device, inode) -> descriptor and number of holders. Record
# locks belong to the process, not to the descriptor: closing a second descriptor of the same file
# would silently give the first one's lock back, so a second claim must share the first one's.
_held: dict[tuple[int, int], list[int]] = {}


class Claim:
    """A lock on a save directory that ends with the process, however it ends.

    A record lock (not flock): a forked data-loading worker that outlives its killed parent for a
    moment does not inherit it, so a restarted run need not wait for it.

    Args:
        directory: Save directory; it must exist.
        wait_s: How long to wait for another process to let go.

    Raises:
        CheckpointError: Another process keeps writing there; the message says which.
        OSError: The lock file cannot be made.
    """

    def __init__(self, directory: Path, *, wait_s: float = 5.0) -> None:
        path = directory / LOCK
        self._key: tuple[int, int] | None = None
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in _held:
                self._key = (status.st_dev, status.st_ino)
                _held[self._key][1] += 1
                self.exclusive = True
                return
        except FileNotFoundError:
            pass
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self.exclusive = _lock(descriptor, path, wait_s)
        except CheckpointError:
            os.close(descriptor)
            raise
        if not self.exclusive:
            os.close(descriptor)
            return
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        # For messages only; on a full disk the lock itself still works.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder, 0)
        status = os.fstat(descriptor)
        self._key = (status.st_dev, status.st_ino)
        _held[self._key] = [descriptor, 1]

    def release(self) -> None:
        """Lets go; other processes may write from now on. Again is harmless."""
        if self._key is None:
            return
        entry = _held[self._key]
        entry[1] -= 1
        if entry[1] == 0:
            del _held[self._key]
            os.close(entry[0])
        self._key = None


def _lock(descriptor: int, path: Path, wait_s: float) -> bool:
    """Locks; False where the file system knows no locks."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                return False
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise CheckpointError(f"{path}: cannot be locked: {error.strerror}") from error
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f"{path.parent}: another process is writing checkpoints there "
                f"({_describe_holder(path)}); stop it, or choose another --save"
            )
        time.sleep(_POLL_S)


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "not known which"

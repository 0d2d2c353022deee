"""A large file written past the page cache, in large aligned blocks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from types import TracebackType

from megacore.durable import write_all

# One system call. The file is written in order, so blocks begin at multiples of this, which is a
# multiple of what any device or file system asks of an unbuffered write.
_BLOCK_BYTES = 8 << 20


class BlockOutput:
    """Collects pieces and writes them in blocks that go from memory to the device (O_DIRECT).

    A checkpoint is as large as the memory of its machine and is not read again soon. Written
    through the page cache it costs a fresh page and a copy for every 4 KiB, pushes out what the
    job reads (its data), and reaches the device only as fast as the kernel gives pages up. The
    last part of a file, smaller than a block, and file systems that do not take unbuffered writes
    go through the cache.

    Args:
        descriptor: New file, at its beginning; the caller flushes and closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Anonymous maps begin at a page, as unbuffered writes want their memory.
        self._view = memoryview(mmap.mmap(-1, _BLOCK_BYTES))
        self._filled = 0
        self._direct = self._switch(True)

    def __enter__(self) -> BlockOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()

    def write(self, piece: bytes | memoryview) -> None:
        """Takes a flat byte view; it may change once the call has returned."""
        left = memoryview(piece)
        while left:
            size = min(len(left), _BLOCK_BYTES - self._filled)
            self._view[self._filled : self._filled + size] = left[:size]
            self._filled += size
            left = left[size:]
            if self._filled == _BLOCK_BYTES:
                self._write_block()
                self._filled = 0

    def _write_block(self) -> None:
        written = 0
        if self._direct:
            try:
                written = os.write(self._descriptor, self._view)
            except OSError as error:
                # The flag was taken, the write is not: nothing has been written.
                if error.errno != errno.EINVAL:
                    raise
        if written < _BLOCK_BYTES:
            # The place may now be one that unbuffered writes do not take.
            self._buffered()
            write_all(self._descriptor, self._view[written:])

    def _finish(self) -> None:
        if self._filled:
            self._buffered()
            write_all(self._descriptor, self._view[: self._filled])

    def _buffered(self) -> None:
        if self._direct:
            self._direct = not self._switch(False)

    def _switch(self, direct: bool) -> bool:
        """Whether the file is now written the way it was asked for."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)
        except OSError:
            return False
        return True

"""Saving in the background: a copy in shared memory, written by another process.

The process is started once, before the memory of training is filled, as a new program and not as a
copy of this one: a process with threads cannot be copied safely. It stays until the run ends.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from megacore.checkpoint.channel import Channel
from megacore.checkpoint.content import Content, aligned, snapshot, snapshot_bytes
from megacore.checkpoint.shared_copy import SharedMemory, describe
from megacore.checkpoint.store_writers import StoreAddress
from megacore.errors import CheckpointError

# For random states and what else is not known beforehand.
_SMALL_TENSORS_BYTES = 1 << 20
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from megacore.checkpoint.background_process import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number."""

    def kill(self) -> None:
        """Ends it at once."""

    def wait(self) -> Any:
        """Waits for its end."""


Launch = Callable[[int, int], Child]


def start_program(channel_descriptor: int, memory_descriptor: int) -> Child:
    """Starts the writing process as a program of its own.

    Args:
        channel_descriptor: Its end of a socket.
        memory_descriptor: The memory it reads.
    """
    words = [json.dumps(sys.path), str(channel_descriptor), str(memory_descriptor)]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *words],
        pass_fds=(channel_descriptor, memory_descriptor),
        stdin=subprocess.DEVNULL,
    )


class BackgroundWriter:
    """Writes checkpoints of this process, one at a time, while it goes on.

    Args:
        directories: Save directories that are claimed for as long as this lives.
        start_iteration: Refuse directories that hold later iterations; None accepts them.
        rank: Which of the processes that save together this one is.
        size: How many there are.
        store: Where their background processes meet; None for one process.
        wait_s: How long to wait for another run that holds a directory.
        launch: Starts the other process.

    Attributes:
        in_flight: Iteration that is being written, None when none is.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        start_iteration: int | None = None,
        rank: int = 0,
        size: int = 1,
        store: StoreAddress | None = None,
        wait_s: float = 5.0,
        launch: Launch = start_program,
    ) -> None:
        self.directories = tuple(Path(directory) for directory in directories)
        self.in_flight: int | None = None
        self._is_closed = False
        self._memory = SharedMemory()
        mine, other = socket.socketpair()
        with other:
            self._child = launch(other.fileno(), self._memory.descriptor)
        self._channel = Channel(mine)
        self._send(
            {
                "open": {
                    "directories": [str(path.absolute()) for path in self.directories],
                    "start_iteration": start_iteration,
                    "rank": rank,
                    "size": size,
                    "store": None if store is None else asdict(store),
                    "wait_s": wait_s,
                }
            }
        )

    @property
    def pid(self) -> int:
        """Number of the other process."""
        return self._child.pid

    def wait_until_ready(self) -> None:
        """Waits until the directories are claimed.

        Raises:
            CheckpointError: They cannot be, or they hold later iterations.
        """
        self._answer()

    def prepare(self, sizes: Sequence[int], *, pinned: bool = False) -> None:
        """Finds the memory for a copy now: on many machines that takes longer than the copy.

        Args:
            sizes: Bytes of the tensors that will be saved; some more small ones may come.
            pinned: They are on the GPU.

        Raises:
            CheckpointError: There is not so much.
        """
        self._memory.view(sum(map(aligned, sizes)) + _SMALL_TENSORS_BYTES, pinned=pinned)

    def submit(
        self,
        content: Content,
        *,
        directory: int = 0,
        overwrite_newer: bool = False,
        retain_last: int | None = None,
        retain_interval: int | None = None,
    ) -> None:
        """Copies a content and has it written; `in_flight` until `finished` or `wait` says so.

        Args:
            content: Of this process; it may change as soon as this returns.
            directory: Index of the save directory.
            overwrite_newer: As in `SaveDirectory.write`.
            retain_last: As in `SaveDirectory.write`.
            retain_interval: As in `SaveDirectory.write`.

        Raises:
            CheckpointError: There is no memory for the copy, or the other process has ended.
        """
        assert self.in_flight is None
        pinned = any(chunk.data.is_cuda for chunk in content.chunks)
        memory = self._memory.view(snapshot_bytes(content), pinned=pinned)
        copied = snapshot(content, memory)
        self._send(
            {
                "save": {
                    "content": describe(copied, memory),
                    "directory": directory,
                    "overwrite_newer": overwrite_newer,
                    "retain_last": retain_last,
                    "retain_interval": retain_interval,
                }
            }
        )
        self.in_flight = content.iteration

    def is_finished(self, wait_s: float = 0.0) -> bool:
        """Whether nothing is in flight, or `wait` would return or fail at once.

        Args:
            wait_s: How long to wait for it.
        """
        return self.in_flight is None or self._channel.has_message(wait_s)

    def wait(self) -> dict[str, Any]:
        """Waits until what is in flight is published.

        Returns:
            "seconds" that it took and "bytes" that this process wrote.

        Raises:
            CheckpointError: It could not be written; what was there before is still valid.
        """
        self.in_flight = None
        saved: dict[str, Any] = self._answer()["saved"]
        return saved

    def close(self, *, grace_s: float = 0.0) -> None:
        """Ends the other process, and with it what is in flight and not done by then.

        Args:
            grace_s: How long what is in flight may take.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self.in_flight is not None and grace_s > 0:
            self._channel.has_message(grace_s)
        self._channel.close()
        self._child.kill()
        self._child.wait()
        self._memory.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._ended() from error

    def _answer(self) -> dict[str, Any]:
        try:
            answer = self._channel.receive()
        except EOFError as error:
            raise self._ended() from error
        if "error" in answer:
            raise CheckpointError(answer["error"])
        return answer

    def _ended(self) -> CheckpointError:
        return CheckpointError(
            "the process that writes checkpoints in the background has ended unexpectedly "
            "(killed, or out of memory?); the tracker still points at what was there"
        )

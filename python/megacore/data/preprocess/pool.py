"""Applying a function to a stream of items in several processes, in order, in bounded memory.

Every worker holds one item at a time, and at most a few results wait for an earlier one, so
neither a fast reader nor a slow worker can fill the memory.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from megacore.errors import DataError, MegacoreError

Item = TypeVar("Item")
Output = TypeVar("Output")

# Results that may wait for an earlier one, per worker.
_WINDOW_PER_WORKER = 4


class WorkerPool(Generic[Item, Output]):
    """Processes that each hold their own copy of a function.

    Args of the constructor:
        make: Builds the function in a new process; it and `arguments` must be picklable where
            processes are not forked.
        arguments: Its arguments.
        built: The function itself, which forked processes use as it is; so is a single worker,
            for which no process is started.
        num_workers: Number of processes.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[Item], Output]],
        arguments: tuple[Any, ...],
        built: Callable[[Item], Output],
        num_workers: int,
    ) -> None:
        self._built = built
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        if num_workers == 1:
            return
        # Forking shares the loaded tokenizer and starts at once. It is safe here because a worker
        # touches nothing that threads of the parent could hold.
        forks = sys.platform.startswith("linux")
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            inherited = [*self._connections, ours] if forks else []
            process = context.Process(
                target=_work,
                args=(theirs, inherited, built if forks else None, make, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def map(self, items: Iterable[Item]) -> Iterator[Output]:
        """The outputs in the order of the items, which are read as they are needed.

        Raises:
            MegacoreError: The function failed, or a worker died.
        """
        if not self._connections:
            yield from map(self._built, items)
            return
        source = iter(items)
        window = _WINDOW_PER_WORKER * len(self._connections)
        idle = list(self._connections)
        busy: dict[Connection, int] = {}
        done: dict[int, Output] = {}
        taken = given = 0
        nothing = object()
        upcoming: Any = next(source, nothing)
        while True:
            # Keep the workers busy before anything else, and read ahead while they are at it.
            while idle and upcoming is not nothing and taken - given < window:
                connection = idle.pop()
                self._send(connection, upcoming)
                busy[connection] = taken
                taken += 1
                upcoming = next(source, nothing)
            while given in done:
                yield done.pop(given)
                given += 1
            if not busy:
                if upcoming is nothing:
                    return
                continue  # the window was full; what was just given has opened it
            ready = wait(list(busy))
            connection = next(one for one in busy if one in ready)
            done[busy.pop(connection)] = self._receive(connection)
            idle.append(connection)

    def close(self) -> None:
        """Ends all processes, whatever they are doing."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._processes, self._connections = [], []

    def __enter__(self) -> WorkerPool[Item, Output]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, connection: Connection, item: Item) -> None:
        try:
            connection.send(item)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death(connection) from error

    def _receive(self, connection: Connection) -> Output:
        try:
            status, value = connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death(connection) from error
        if status == "done":
            output: Output = value
            return output
        raise DataError(value) if status == "data" else MegacoreError(value)

    def _death(self, connection: Connection) -> MegacoreError:
        process = self._processes[self._connections.index(connection)]
        process.join(5)
        return MegacoreError(
            f"a worker process died (exit code {process.exitcode}"
            + (
                "; killed, perhaps for lack of memory: use fewer --workers)"
                if process.exitcode == -9
                else ")"
            )
        )


def _work(
    connection: Connection,
    inherited: list[Connection],
    built: Callable[[Any], Any] | None,
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
) -> None:
    # Interrupts go to the whole process group; the parent decides what they mean. Ends of pipes
    # that belong to the parent are closed, so that its death is seen as the end of the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    try:
        function = built if built is not None else make(*arguments)
        while True:
            item = connection.recv()
            try:
                answer = ("done", function(item))
            except DataError as error:
                answer = ("data", str(error))
            except Exception:
                answer = ("failed", f"a worker process failed:\n{traceback.format_exc()}")
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return

"""Worker processes for tests of code that communicates, started once and used by many tests.

A test calls `world(n).run(fn, *args)` (fixture `world`): the module-level function runs as
`fn(group, *args)` on n processes, where `group` is the Group of all of them, and the results come
back as a list by rank. Workers are forks of one server that has imported torch, so that starting
them takes milliseconds. A pool in which something failed or hung is thrown away and replaced.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
# After the first failure the others are mostly stuck in a collective with it.
GRACE = 1.0
PRELOAD = ["pytest", "torch.distributed", "megacore.models.gpt", "megacore.parallel.groups"]


class WorkerError(AssertionError):
    """A function failed on a rank of the pool, or did not return in time.

    Attributes:
        rank: The rank that failed first, or None for a timeout.
        kind: Name of the exception's class.
    """

    def __init__(self, rank: int | None, kind: str, text: str) -> None:
        super().__init__(text)
        self.rank = rank
        self.kind = kind


def _serve(rank: int, size: int, store_file: str, connection: Connection) -> None:
    import torch
    from torch.distributed import FileStore

    from megacore.parallel.groups import Group

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=FileStore(store_file, size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    group = Group("world", tuple(range(size)), rank, torch.distributed.group.WORLD)
    while True:
        try:
            path, fn, args = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            sys.path[:] = path
            module, name = fn
            target = getattr(__import__(module, fromlist=[name]), name)
            answer = (True, target(group, *args))
        except BaseException as error:
            answer = (False, (type(error).__name__, traceback.format_exc()))
        connection.send(answer)


class WorkerPool:
    """Some worker processes, all in one group.

    Attributes:
        size: Number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[Any] = []
        self._connections: list[Connection] = []

    def run(self, fn: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Results of `fn(group, *args)` by rank.

        Args:
            fn: Function of a module that can be imported (such as the test's own).
            args: Anything that can be pickled; the same for every rank.
            timeout: Seconds after which the workers are ended.

        Raises:
            WorkerError: It failed on some rank, or took too long.
        """
        if not self._workers:
            self._start()
        for connection in self._connections:
            connection.send((list(sys.path), (fn.__module__, fn.__name__), args))
        results: dict[int, Any] = {}
        failure: WorkerError | None = None
        end = time.monotonic() + timeout
        while len(results) < self.size and time.monotonic() < end:
            waiting = [c for rank, c in enumerate(self._connections) if rank not in results]
            for ready in wait(waiting, timeout=max(0.0, end - time.monotonic())):
                rank = self._connections.index(ready)
                try:
                    good, results[rank] = ready.recv()
                except (EOFError, ConnectionError):
                    good, results[rank] = False, ("Died", "the process ended")
                if not good and failure is None:
                    kind, text = results[rank]
                    failure = WorkerError(rank, kind, f"rank {rank} of {self.size}: {text}")
                    end = min(end, time.monotonic() + GRACE)
        if failure is None and len(results) < self.size:
            missing = [rank for rank in range(self.size) if rank not in results]
            text = f"ranks {missing} of {self.size} did not return within {timeout} s"
            failure = WorkerError(None, "Timeout", text)
        if failure is not None:
            self.stop()
            raise failure
        return [results[rank] for rank in range(self.size)]

    def stop(self) -> None:
        """Ends the workers; the next `run` starts new ones."""
        for connection in self._connections:
            connection.close()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        self._workers, self._connections = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._directory = tempfile.TemporaryDirectory(prefix="worker_pool_")
        store_file = str(Path(self._directory.name) / "store")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_serve, args=(rank, self.size, store_file, theirs), daemon=True
            )
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._connections.append(ours)


class WorkerPools:
    """The pools of one test session, by size; started when first used."""

    def __init__(self) -> None:
        self._pools: dict[int, WorkerPool] = {}

    def __call__(self, size: int) -> WorkerPool:
        """The pool of `size` processes."""
        return self._pools.setdefault(size, WorkerPool(size))

    def stop(self) -> None:
        """Ends all workers."""
        for pool in self._pools.values():
            pool.stop()

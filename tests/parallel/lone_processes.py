"""Processes that meet, fail and part by themselves, as a launcher would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_pool import PRELOAD


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; -9 when it was killed.
        text: What it wrote to standard error.
    """

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """What it wrote, without the chatter of torch."""
        return [line for line in self.text.splitlines() if not line.startswith(("[rank", "[W"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _enter(
    fn: Callable[..., Any], rank: int, environment: dict[str, str], log: str, args: tuple[Any, ...]
) -> None:
    import torch

    from megacore.cli import run

    torch.set_num_threads(1)
    # Also what C++ writes.
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)

    def command(words: list[str]) -> int:
        fn(rank, environment, *args)
        return 0

    try:
        sys.exit(run(command, []))
    finally:
        sys.stderr.flush()


def run_processes(
    fn: Callable[..., Any], size: int, directory: Path, *args: Any, limit: float = 60.0
) -> list[Ended]:
    """Runs `fn(rank, environment, *args)` as a command of megacore in `size` processes.

    `environment` holds the variables of a launcher. A process that has not ended after `limit`
    seconds is killed, and the test fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = str(free_port())
    logs = [directory / f"stderr_{rank}" for rank in range(size)]
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        arguments = (fn, rank, environment, str(logs[rank]), args)
        processes.append(context.Process(target=_enter, args=arguments, daemon=True))
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    stuck = [rank for rank, process in enumerate(processes) if process.exitcode is None]
    for process in processes:
        process.kill()
        process.join()
    texts = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
    assert not stuck, (stuck, texts)
    return [Ended(processes[r].exitcode or 0, texts[r]) for r in range(size)]

"""Processes of this machine that measure at the same time, as those of a run compute.

Results come back as JSON through pipes.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from megacore.errors import CommunicationError
from megacore.parallel.groups import Group

Task = Callable[[Group, torch.device, dict[str, Any]], dict[str, Any]]
_TIMEOUT_S = 600.0


def run_together(
    task: Task, options: dict[str, Any], *, processes: int, threads: int
) -> list[dict[str, Any]]:
    """Results of `task(group, device, options)` of each process, by rank.

    Args:
        task: A function of a module.
        options: What JSON can hold.
        processes: How many, each with a GPU of its own where there are that many.
        threads: Of each process, for operations of the CPU.

    Raises:
        CommunicationError: A process failed or took too long; its own message was printed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="megacore_calibrate_") as folder:
        store = str(Path(folder) / "store")
        workers, pipes = [], []
        for rank in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (task, json.dumps(options), rank, processes, threads, store, theirs)
            worker = context.Process(target=_serve, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            workers.append(worker)
            pipes.append(ours)
        try:
            return [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
        finally:
            for worker, pipe in zip(workers, pipes, strict=True):
                pipe.close()
                worker.join(timeout=5.0)
                if worker.is_alive():
                    worker.kill()
                    worker.join()


def _answer(pipe: Connection, rank: int) -> dict[str, Any]:
    cause = f"no answer within {_TIMEOUT_S:g} s"
    try:
        if pipe.poll(_TIMEOUT_S):
            answer: dict[str, Any] = json.loads(pipe.recv_bytes())
            return answer
    except EOFError:
        cause = "the process ended before it answered"
    raise CommunicationError(
        rank=rank,
        operation="calibrate",
        group="calibrate",
        ranks=(rank,),
        shape=None,
        dtype=None,
        step=None,
        cause=cause,
    )


def _serve(
    task: Task,
    options: str,
    rank: int,
    size: int,
    threads: int,
    store: str,
    connection: Connection,
) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if torch.cuda.is_available() and torch.cuda.device_count() >= size:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    process_group = None
    if size > 1:
        torch.distributed.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            store=torch.distributed.FileStore(store, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=_TIMEOUT_S),
        )
        process_group = torch.distributed.group.WORLD
    group = Group("calibrate", tuple(range(size)), rank, process_group)
    answer = task(group, device, json.loads(options))
    group.barrier()
    connection.send_bytes(json.dumps(answer).encode())
    connection.close()
    if size > 1:
        torch.distributed.destroy_process_group()

"""Several forms of the same work, taken in turns; alone or in processes that meet over Gloo."""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megacore.parallel.groups import Group

Step = Callable[[], None]
# The steps of a process, by name, from the benchmark's arguments and its group.
MakeSteps = Callable[[argparse.Namespace, Group], dict[str, Step]]


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, taken in turns; the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _worker(rank: int, args: argparse.Namespace, make: MakeSteps, store_file: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store_file, args.processes),
        rank=rank,
        world_size=args.processes,
        timeout=datetime.timedelta(seconds=120),
    )
    group = Group("world", tuple(range(args.processes)), rank, torch.distributed.group.WORLD)
    found = medians(make(args, group), args.repeats)
    if rank == 0:
        print(f"\ngloo, {args.processes} processes: ms")
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:{width}s} {value:8.1f}")
    torch.distributed.destroy_process_group()


def gloo_table(args: argparse.Namespace, make: MakeSteps) -> None:
    """Print the medians of all forms in `args.processes` processes of this machine.

    Args:
        args: With `processes` and `repeats`.
        make: Function of a module; called in every process.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        torch.multiprocessing.spawn(_worker, args=(args, make, store), nprocs=args.processes)

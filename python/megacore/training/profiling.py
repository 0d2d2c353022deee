"""Profiling of a window of iterations, and the named ranges that profilers show.

On a GPU the window is marked with cudaProfilerStart/Stop for Nsight Systems (run under
`nsys profile -t nvtx,cuda --capture-range=cudaProfilerApi --capture-range-end=stop`). With
`--use-pytorch-profiler`, and always on a CPU, PyTorch's profiler records it: a Chrome trace for
Perfetto and a table of the slowest operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from megacore.errors import UsageError
from megacore.training.config import ProfileConfig

TABLE_ROWS = 40


def profile_directory(*, tensorboard_dir: str | None, save: str | None) -> Path:
    """Where traces go: `--tensorboard-dir`, else `--save`, else the current directory."""
    return Path(tensorboard_dir or save or ".")


class Profiler:
    """Profiles iterations [start, end), counted from 0, when asked to.

    Args:
        config: The profiler window.
        device: Where training runs.
        rank: Rank of this process; only `profile_ranks` are profiled.
        directory: Where traces and tables are written.
        say: Prints a line that tells where things are.

    Attributes:
        iteration: The running iteration, counted from 1, if it lies in the window; the same on all
            ranks, profiled or not.

    Raises:
        UsageError: Memory history was asked for on a device that cannot record it.
    """

    def __init__(
        self,
        config: ProfileConfig,
        *,
        device: torch.device,
        rank: int,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        if config.record_memory_history and device.type != "cuda":
            raise UsageError(
                "--record-memory-history records PyTorch's CUDA allocator and this run is on "
                f"{device.type}: leave it out (resident memory is in the second log line)"
            )
        self._config = config
        self._device = device
        self._rank = rank
        self._directory = directory
        self._say = say
        self._on = config.profile and rank in config.profile_ranks
        self._use_torch = config.use_pytorch_profiler or device.type != "cuda"
        self._profiler: torch.profiler.profile | None = None
        self._running = False
        self._first = 0
        self.iteration: int | None = None
        self._records_memory = config.record_memory_history and rank in config.profile_ranks
        if self._records_memory:
            torch.cuda.memory._record_memory_history(max_entries=100_000)

    def range(self, name: str) -> AbstractContextManager[object]:
        """A named range around a part of an iteration: NVTX on a GPU, a profiler label on a CPU."""
        if not self._running:
            return nullcontext()
        if self._use_torch:
            return record_function(name)
        return torch.cuda.nvtx.range(name)

    def before_iteration(self, done: int) -> None:
        """Open the window when `done` iterations are behind us and the next one lies in it."""
        start, end = self._config.profile_step_start, self._config.profile_step_end
        in_window = self._config.profile and start <= done < end
        self.iteration = done + 1 if in_window else None
        if not self._on or self._running or not start <= done < end:
            return
        self._running, self._first = True, done + 1
        if not self._use_torch:
            torch.cuda.cudart().cudaProfilerStart()
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities, record_shapes=True, profile_memory=True
        )
        self._profiler.start()

    def after_iteration(self, done: int) -> None:
        """Close the window when its last iteration is done."""
        if done < self._config.profile_step_end:
            return
        if self._running:
            self._stop(done)
        if self._records_memory:
            self._snapshot()

    def close(self, done: int) -> None:
        """Write what was recorded when training ends inside the window."""
        if self._running:
            self._stop(done)
        if self._records_memory:
            self._snapshot()

    def _stop(self, done: int) -> None:
        self._running = False
        if self._profiler is None:
            torch.cuda.cudart().cudaProfilerStop()
            return
        self._profiler.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        stem = f"profile_rank{self._rank}_iterations_{self._first}-{done}"
        trace = self._directory / f"{stem}.trace.json"
        table = self._directory / f"{stem}.txt"
        self._profiler.export_chrome_trace(str(trace))
        table.write_text(slowest_operations(self._profiler, self._device), encoding="utf-8")
        self._say(f"profile of iterations {self._first} to {done}: trace {trace}, table {table}")
        self._profiler = None

    def _snapshot(self) -> None:
        self._records_memory = False
        path = Path(self._config.memory_snapshot_path)
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        self._say(f"memory history: {path} (open it at https://pytorch.org/memory_viz)")


def slowest_operations(profiler: torch.profiler.profile, device: torch.device) -> str:
    """The operations by the time spent in themselves, one per line."""
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=TABLE_ROWS)

"""Compiles and calls the direct loops of data_peers.cpp, and pins a benchmark to one core."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load_peers() -> ctypes.CDLL:
    folder = tempfile.mkdtemp()
    library = Path(folder) / "peers.so"
    source = Path(__file__).with_name("data_peers.cpp")
    subprocess.run(
        ["g++", "-O3", "-shared", "-fPIC", "-std=c++20", str(source), "-o", str(library)],
        check=True,
    )
    return ctypes.CDLL(str(library))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def on_one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the clock and the result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def timed_on_cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds and the result: what one core takes, also on a machine that is shared."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"

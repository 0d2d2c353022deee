"""How much memory of the machine a process can still have, before it asks for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
# Options of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MEMORY = Path("/proc/meminfo")


def memory_limit() -> int | None:
    """Bytes that the control group of this process may use, where that is limited."""
    return _number(_GROUP / "memory.max")


def available_bytes() -> float:
    """Memory that can be had without swapping; infinite where the system does not say.

    Linux gives memory out before it has it, and ends processes when it runs out: who wants much
    has to look first.
    """
    found = float("inf")
    for line in _lines(_MEMORY):
        if line.startswith("MemAvailable:"):
            found = 1024.0 * int(line.split()[1])
    limit, used = memory_limit(), _number(_GROUP / "memory.current")
    if limit is not None and used is not None:
        # Pages of files that nobody uses are given up when memory is wanted.
        cached = (
            int(line.split()[1])
            for line in _lines(_GROUP / "memory.stat")
            if line.startswith("inactive_file ")
        )
        found = min(found, float(max(0, limit - used + sum(cached))))
    return found


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def keep_freed_memory() -> bool:
    """Makes this process keep memory that it frees, for its next allocations.

    The C library gives each large block back to the system at once, which hands out zeroed pages
    one fault at a time: a training step on a CPU allocates the same gigabytes again and again.
    Kept, they cost nothing the second time. The process holds on to the most that it ever used.

    Returns:
        Whether the allocator takes it: glibc's does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # Both are needed: no mapping of a block's own, and no return of the end of the heap.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

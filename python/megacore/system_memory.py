"""How much memory of the machine a process can still have, before it asks for it."""

from __future__ import annotations

from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
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

"""Memory that the process uses now and has used at most."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from megacore.parallel.groups import Group
from megacore.training.agreement import gathered
from megacore.training.flops import MEBIBYTE


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use.

    Attributes:
        kind: "RSS" (resident memory of the process) or "CUDA" (PyTorch's allocator).
        allocated: Bytes in use now.
        peak: Highest value so far.
        reserved: CUDA: bytes the allocator holds; RSS: the same as `allocated`.
        peak_reserved: Highest value of it so far.
        blocks: CUDA: live allocations; RSS: 0.
    """

    kind: str
    allocated: int
    peak: int
    reserved: int
    peak_reserved: int
    blocks: int


def memory_use(device: torch.device) -> MemoryUse:
    """What the run uses on `device`."""
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        return MemoryUse(
            "CUDA",
            int(stats["allocated_bytes.all.current"]),
            int(stats["allocated_bytes.all.peak"]),
            int(stats["reserved_bytes.all.current"]),
            int(stats["reserved_bytes.all.peak"]),
            int(stats["allocation.all.current"]),
        )
    # ru_maxrss counts KiB on Linux and bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    now = _resident_bytes() or peak
    return MemoryUse("RSS", now, max(now, peak), now, max(now, peak), 0)


def memory_everywhere(device: torch.device, group: Group) -> dict[int, MemoryUse]:
    """Rank in the run -> what that process uses, for the members of a group; all call it."""
    use = memory_use(device)
    row = [use.allocated, use.peak, use.reserved, use.peak_reserved, use.blocks]
    rows = gathered(row, group, device)
    return {
        rank: MemoryUse(use.kind, *(int(value) for value in values))
        for rank, values in zip(group.ranks, rows, strict=True)
    }


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()


def format_memory(use: MemoryUse, iteration: int, *, rank: int = 0) -> str:
    """The line about one process in the allocator report that follows the first log line."""
    text = f"[Rank {rank}] (after {iteration} iterations) memory (MB)"
    text += f" | allocated: {use.allocated / MEBIBYTE:.1f}"
    text += f" | max allocated: {use.peak / MEBIBYTE:.1f}"
    if use.kind == "CUDA":
        text += f" | reserved: {use.reserved / MEBIBYTE:.1f}"
        text += f" | max reserved: {use.peak_reserved / MEBIBYTE:.1f}"
    else:
        text += " | resident memory of the process"
    return text

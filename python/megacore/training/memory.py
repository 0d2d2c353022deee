"""Memory that the process uses now and has used at most."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from megacore.training.flops import MEBIBYTE


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use.

    Attributes:
        kind: "RSS" (resident memory of the process) or "CUDA" (PyTorch's allocator).
        allocated: Bytes in use now.
        peak: Highest value so far.
        reserved: CUDA: bytes the allocator holds; RSS: the same as `allocated`.
        blocks: CUDA: live allocations; RSS: 0.
    """

    kind: str
    allocated: int
    peak: int
    reserved: int
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
            int(stats["allocation.all.current"]),
        )
    # ru_maxrss counts KiB on Linux and bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    now = _resident_bytes() or peak
    return MemoryUse("RSS", now, max(now, peak), now, 0)


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()


def format_memory(device: torch.device, iteration: int, *, rank: int = 0) -> str:
    """The allocator report that follows the first log line."""
    use = memory_use(device)
    text = f"[Rank {rank}] (after {iteration} iterations) memory (MB)"
    text += f" | allocated: {use.allocated / MEBIBYTE:.1f}"
    text += f" | max allocated: {use.peak / MEBIBYTE:.1f}"
    if device.type == "cuda":
        most = torch.cuda.max_memory_reserved(device)
        text += f" | reserved: {use.reserved / MEBIBYTE:.1f}"
        text += f" | max reserved: {most / MEBIBYTE:.1f}"
    else:
        text += " | resident memory of the process"
    return text

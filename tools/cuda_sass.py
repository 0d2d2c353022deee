"""Machine code of CUDA kernels: how wide their accesses are, and how many warps fit.

The disassembler is cuobjdump with nvdisasm: of the CUDA toolkit, or of the `triton` package, which
is fetched into build/cuda-tools when neither is there.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

FUNCTION = re.compile(r"^\t\tFunction : (\w+)\n", re.M)
ARCH = re.compile(r"^arch = (\w+)", re.M)
ACCESS = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(LDG|STG|LDL|STL)((?:\.\w+)*) ", re.M)
NARROW = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

REGISTERS = 65536
MAX_WARPS = 64
MAX_BLOCKS = 32
# Shared memory of a multiprocessor; a block takes 1 KiB beside its own.
SHARED_BYTES = {"sm_80": 164 << 10, "sm_90a": 228 << 10, "sm_100a": 228 << 10}


@dataclasses.dataclass(frozen=True)
class Accesses:
    """Instructions of one kernel that touch memory.

    Attributes:
        wide_loads: Loads of 16 bytes from global memory.
        narrow_loads: Other loads from it.
        wide_stores: Stores of 16 bytes.
        narrow_stores: Other stores.
        local: Loads and stores of local memory (spills, arrays that are no registers).
    """

    wide_loads: int
    narrow_loads: int
    wide_stores: int
    narrow_stores: int
    local: int


def find_tools(folder: Path) -> Path | None:
    """The folder with cuobjdump and nvdisasm, or None when it cannot be had.

    Args:
        folder: Where the `triton` package is put when it has to be fetched.
    """
    on_path = [shutil.which(name) for name in ("nvcc", "cuobjdump")]
    places = [Path(found).resolve().parent for found in on_path if found]
    inside = Path("triton/backends/nvidia/bin")
    places += [Path(entry) / inside for entry in sys.path] + [folder / inside]
    if found := _first(places):
        return found
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    if subprocess.run([*fetch, str(folder), "triton"], capture_output=True).returncode != 0:
        return None
    return _first(places)


def _first(places: list[Path]) -> Path | None:
    for place in places:
        if (place / "cuobjdump").exists() and (place / "nvdisasm").exists():
            return place
    return None


def disassemble(library: Path, tools: Path) -> dict[tuple[str, str], Accesses]:
    """(mangled kernel, architecture) -> its accesses, of all kernels in a library.

    Raises:
        RuntimeError: The disassembler fails.
    """
    # cuobjdump looks for nvdisasm on PATH.
    command = ["env", f"PATH={tools}:/usr/bin:/bin", "cuobjdump", "-sass", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump failed: {done.stderr.strip()}")
    return parse_sass(done.stdout)


def parse_sass(text: str) -> dict[tuple[str, str], Accesses]:
    """`disassemble` for what cuobjdump printed."""
    found = {}
    pieces = FUNCTION.split(text)
    arch = ""
    for before, name, body in zip(pieces[:-2:2], pieces[1::2], pieces[2::2], strict=True):
        if named := ARCH.findall(before):
            arch = named[-1]
        found[name, arch] = _count(body)
    return found


def _count(body: str) -> Accesses:
    counts: collections.Counter[tuple[str, bool]] = collections.Counter()
    for instruction, modifiers in ACCESS.findall(body):
        sizes = [NARROW[part] for part in modifiers.split(".") if part in NARROW]
        counts[instruction, (sizes or [4])[0] == 16] += 1
    local = sum(count for (name, _), count in counts.items() if name in ("LDL", "STL"))
    return Accesses(
        counts["LDG", True], counts["LDG", False], counts["STG", True], counts["STG", False], local
    )


def occupancy(registers: int, threads: int, shared_bytes: int, arch: str) -> float:
    """Share of a multiprocessor's warps that are resident, from what a block takes.

    Source: CUDA C++ Programming Guide, compute capabilities 8.0 and 9.0: registers are given to
    warps in units of 256, 65536 of them, 64 warps, 32 blocks.
    """
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // per_warp // warps
    shared = SHARED_BYTES.get(arch, min(SHARED_BYTES.values())) // (shared_bytes + 1024)
    blocks = min(by_registers, MAX_WARPS // warps, MAX_BLOCKS, shared)
    return blocks * warps / MAX_WARPS

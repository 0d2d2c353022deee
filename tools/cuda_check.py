"""Compile and link every CUDA source without a GPU, and report what each kernel uses.

Builds the CUDA variant of megacore (MEGACORE_CUDA=ON) for sm_80 and sm_90a in build/cuda-check,
prints registers, spills and shared memory of each kernel as ptxas reports them, and checks that the
linked library leaves no symbol of megacore undefined. Needs nvcc and no GPU; nothing is executed.

    python tools/cuda_check.py [--all] [--require]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cuda-check"
PRODUCT = BUILD / "product"
REPORT = BUILD / "kernels.json"
ARCHITECTURES = "80;90a"

BUILDING = re.compile(r"^\[\d+/\d+\] Building CUDA object .*?/([\w.-]+\.cu)\.o", re.M)
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)
SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one compiled kernel.

    Attributes:
        source: File name of the .cu.
        name: Demangled name.
        arch: Such as "sm_90a".
        registers: Registers of a thread.
        spill_stores: Bytes written to local memory for lack of registers.
        spill_loads: Bytes read back.
        shared_bytes: Static shared memory of a block.
    """

    source: str
    name: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int


def tool(name: str) -> str:
    """The program beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def demangle(names: list[str]) -> list[str]:
    """Readable names, or the given ones where c++filt is absent."""
    if shutil.which("c++filt") is None or not names:
        return names
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def parse_log(log: str) -> list[Kernel]:
    """The kernels in a build log."""
    found = []
    pieces = BUILDING.split(log)
    for source, text in zip(pieces[1::2], pieces[2::2], strict=True):
        for match in KERNEL.finditer(text):
            shared = SHARED.search(match["rest"])
            found.append(
                Kernel(
                    source=source,
                    name=match["name"],
                    arch=match["arch"],
                    registers=int(match["registers"]),
                    spill_stores=int(match["stores"]),
                    spill_loads=int(match["loads"]),
                    shared_bytes=int(shared[1]) if shared else 0,
                )
            )
    names = demangle([kernel.name for kernel in found])
    short = [re.sub(r"^void |megacore::cuda::|\(anonymous namespace\)::", "", n) for n in names]
    return [dataclasses.replace(k, name=n) for k, n in zip(found, short, strict=True)]


def build() -> list[Kernel]:
    """Configure and build; returns the kernels of all sources, also of those that were current."""
    known: list[Kernel] = []
    if REPORT.exists():
        known = [Kernel(**entry) for entry in json.loads(REPORT.read_text())]
    elif BUILD.exists():
        shutil.rmtree(BUILD)  # objects without their report would never be reported
    BUILD.mkdir(parents=True, exist_ok=True)
    configure = [
        tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DMEGACORE_CUDA=ON", "-DMEGACORE_PTXAS_REPORT=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURES}",
        f"-DMEGACORE_OUTPUT_DIR={PRODUCT}",
    ]  # fmt: skip
    run(configure)
    log = run([tool("cmake"), "--build", str(BUILD), "--target", "_ops"])
    fresh = parse_log(log)
    rebuilt = {kernel.source for kernel in fresh}
    sources = {path.name for path in (ROOT / "csrc" / "kernels").glob("*.cu")}
    kernels = fresh + [k for k in known if k.source in sources - rebuilt]
    if missing := sources - {kernel.source for kernel in kernels}:
        raise SystemExit(f"cuda-check: no kernel was reported for {', '.join(sorted(missing))}")
    REPORT.write_text(json.dumps([dataclasses.asdict(k) for k in kernels]))
    return kernels


def run(command: list[str]) -> str:
    """Run and return the output; on failure print it and end with status 1."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout)
        raise SystemExit(f"cuda-check: {' '.join(command[:2])} failed")
    return done.stdout


def check_link() -> None:
    """End with status 1 when the linked library lacks a symbol of megacore."""
    library = PRODUCT / "_ops.so"
    listing = run(["nm", "-DC", "--undefined-only", str(library)])
    undefined = [line.split("U ", 1)[1] for line in listing.splitlines() if "U " in line]
    if lacking := [name for name in undefined if "megacore" in name]:
        raise SystemExit("cuda-check: undefined after linking: " + ", ".join(lacking))
    print(f"linked {library.relative_to(ROOT)} ({library.stat().st_size / 2**20:.1f} MiB)")


def print_table(kernels: list[Kernel], *, every: bool) -> None:
    """One line a kernel; by default instantiations of one template share a line (their maxima)."""
    groups: dict[tuple[str, str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        name = kernel.name if every else re.split(r"[<(]", kernel.name)[0]
        groups[kernel.source, name, kernel.arch].append(kernel)
    heading = ("source", "kernel", "arch", "count", "registers", "spill bytes", "shared bytes")
    rows = [heading]
    for (source, name, arch), group in sorted(groups.items()):
        low, high = min(k.registers for k in group), max(k.registers for k in group)
        rows.append(
            (
                source,
                name,
                arch,
                str(len(group)),
                str(low) if low == high else f"{low}-{high}",
                str(max(k.spill_stores + k.spill_loads for k in group)),
                str(max(k.shared_bytes for k in group)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True))
        right = "  ".join(cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True))
        print(f"{left}  {right}")


def main() -> None:
    """Parse the command line and run the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="one line for each instantiation")
    parser.add_argument("--require", action="store_true", help="fail when there is no nvcc")
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("cuda-check SKIPPED: nvcc was not found, the CUDA sources were not compiled")
        raise SystemExit(1 if arguments.require else 0)
    kernels = build()
    print_table(kernels, every=arguments.all)
    check_link()
    print("compiled and linked; no GPU executed any of it")


if __name__ == "__main__":
    main()

"""Compile and link every CUDA source without a GPU, and hold each kernel against its promises.

Builds the CUDA variant of megacore (MEGACORE_CUDA=ON) for sm_80 and sm_90a in build/cuda-check and
checks that the linked library leaves no symbol of megacore undefined. Prints registers, spills and
shared memory of each kernel as ptxas reports them, the share of warps that fit, and the widths of
its accesses to global memory from the machine code. Fails when a kernel spills, keeps an array in
local memory, is not listed in cuda_rules.py, or has more narrow accesses than that allows. Needs
nvcc and no GPU; nothing is executed.

    python tools/cuda_check.py [--all] [--require] [--write FILE]
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
from collections.abc import Iterator
from pathlib import Path

import cuda_rules
import cuda_sass

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
        symbol: Name in the object file.
        name: Demangled name.
        arch: Such as "sm_90a".
        registers: Registers of a thread.
        stack_bytes: Local memory of a thread: spills, and arrays that are no registers.
        spill_stores: Bytes written to local memory for lack of registers.
        spill_loads: Bytes read back.
        shared_bytes: Static shared memory of a block.
    """

    source: str
    symbol: str
    name: str
    arch: str
    registers: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int

    @property
    def base(self) -> str:
        """The name without template arguments."""
        return re.split(r"[<(]", self.name)[0]

    @property
    def arguments(self) -> str:
        """The template arguments, or ""."""
        found = re.match(r"\w+<(.*)>", self.name)
        return found[1] if found else ""

    @property
    def occupancy(self) -> float | None:
        """Share of the warps that are resident with its largest block; None: not listed."""
        rule = cuda_rules.BY_KERNEL.get(self.base)
        if rule is None:
            return None
        shared = self.shared_bytes + rule.dynamic_bytes
        return cuda_sass.occupancy(self.registers, rule.threads, shared, self.arch)


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
                    symbol=match["name"],
                    name=match["name"],
                    arch=match["arch"],
                    registers=int(match["registers"]),
                    stack_bytes=int(match["stack"]),
                    spill_stores=int(match["stores"]),
                    spill_loads=int(match["loads"]),
                    shared_bytes=int(shared[1]) if shared else 0,
                )
            )
    names = demangle([kernel.name for kernel in found])
    cleaned = [re.sub(r"(\(anonymous namespace\)|\b\w+_kernels)::", "", n) for n in names]
    short = [re.sub(r"^void |megacore::(?:cuda::)?", "", n) for n in cleaned]
    return [dataclasses.replace(k, name=n) for k, n in zip(found, short, strict=True)]


def build() -> list[Kernel]:
    """Configure and build; returns the kernels of all sources, also of those that were current."""
    known: list[Kernel] = []
    if report := read_report():
        known = report
        REPORT.unlink()  # written again when the build is complete
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


def read_report() -> list[Kernel]:
    """The kernels of earlier builds; none when there is no report or another version wrote it."""
    try:
        return [Kernel(**entry) for entry in json.loads(REPORT.read_text())]
    except (OSError, TypeError, ValueError):
        return []


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


def broken_promises(
    kernels: list[Kernel], accesses: dict[tuple[str, str], cuda_sass.Accesses] | None
) -> Iterator[str]:
    """What is wrong with the kernels, one line each.

    Args:
        kernels: As ptxas reports them.
        accesses: Of the machine code by (symbol, architecture); None when it is not known.
    """
    for name in sorted({k.base for k in kernels} - cuda_rules.BY_KERNEL.keys()):
        yield f"{name} is not listed in tools/cuda_rules.py"
    for kernel in kernels:
        where = f"{kernel.source}: {kernel.name} ({kernel.arch})"
        if spilled := kernel.spill_stores + kernel.spill_loads:
            yield f"{where} spills {spilled} bytes"
        elif kernel.stack_bytes:
            yield f"{where} keeps {kernel.stack_bytes} bytes of arrays in local memory"
        rule = cuda_rules.BY_KERNEL.get(kernel.base)
        if rule is None or accesses is None:
            continue
        found = accesses.get((kernel.symbol, kernel.arch))
        if found is None:
            yield f"{where} is not in the machine code"
        elif rule.promises(kernel.arguments):
            for what, count, most in (
                ("loads", found.narrow_loads, rule.loads),
                ("stores", found.narrow_stores, rule.stores),
            ):
                if count > most:
                    yield f"{where} has {count} {what} of less than 16 bytes, at most {most} fit"
            if found.wide_loads == 0:
                yield f"{where} has no load of 16 bytes"


HEADING = (
    "source", "kernel", "arch", "count", "registers", "spill bytes", "shared bytes", "occupancy",
    "16-byte loads", "other loads", "16-byte stores", "other stores",
)  # fmt: skip


def table(
    kernels: list[Kernel],
    accesses: dict[tuple[str, str], cuda_sass.Accesses] | None,
    *,
    every: bool,
) -> list[tuple[str, ...]]:
    """Rows under `HEADING`; by default instantiations of one template share a row."""
    groups: dict[tuple[str, str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        name = kernel.name if every else kernel.base
        rule = cuda_rules.BY_KERNEL.get(kernel.base)
        if rule is not None and rule.wide is not None and not every:
            name += " (wide)" if rule.promises(kernel.arguments) else " (narrow)"
        groups[kernel.source, name, kernel.arch].append(kernel)
    rows = []
    for (source, name, arch), group in sorted(groups.items()):
        found = [(accesses or {}).get((k.symbol, k.arch)) for k in group]
        widths = [
            _span([value for f in found if (value := getattr(f, field, None)) is not None])
            for field in ("wide_loads", "narrow_loads", "wide_stores", "narrow_stores")
        ]
        percent = [round(100 * o) for k in group if (o := k.occupancy) is not None]
        rows.append(
            (
                source,
                name,
                arch,
                str(len(group)),
                _span([k.registers for k in group]),
                _span([k.spill_stores + k.spill_loads for k in group]),
                _span([k.shared_bytes for k in group]),
                _span(percent) + ("%" if percent else ""),
                *widths,
            )
        )
    return rows


def _span(values: list[int]) -> str:
    """The one value or the smallest and the largest; "?" for none."""
    if not values:
        return "?"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def print_table(rows: list[tuple[str, ...]]) -> None:
    """The rows under their heading, in columns."""
    rows = [HEADING, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADING))]
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True))
        right = "  ".join(cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True))
        print(f"{left}  {right}")


def write_report(path: Path, rows: list[tuple[str, ...]]) -> None:
    """The table and the promises as Markdown."""
    version = re.findall(r"release [\w.]+", run(["nvcc", "--version"]))
    lines = [
        "# CUDA kernels as the compiler sees them",
        "",
        "No GPU was used: registers, spills and shared memory are those ptxas reports, accesses",
        "are counted in the machine code, occupancy is computed from registers, shared memory and",
        "the largest block. A row joins the instantiations of one template. The check fails on",
        "spills, on arrays in local memory, and on more narrow accesses than listed below.",
        "",
        f"Command: `python tools/cuda_check.py --write {path.as_posix()}`, nvcc {version[0]}.",
        "",
        "| " + " | ".join(HEADING) + " |",
        "|---" * 3 + "|---:" * (len(HEADING) - 3) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "## Bytes per element, and the narrow accesses of kernels that promise 16 bytes",
        "",
        "| kernel | moved | minimum | narrow loads | narrow stores | for |",
        "|---|---|---|---:|---:|---|",
    ]
    for rule in cuda_rules.RULES:
        narrow = [
            "any" if rule.wide is None or most == cuda_rules.ANY else str(most)
            for most in (rule.loads, rule.stores)
        ]
        cells = (rule.kernel, rule.moved, rule.minimum or "-", *narrow, rule.why or "-")
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Parse the command line and run the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="one line for each instantiation")
    parser.add_argument(
        "--require", action="store_true", help="fail without nvcc or without a disassembler"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("cuda-check SKIPPED: nvcc was not found, the CUDA sources were not compiled")
        raise SystemExit(1 if arguments.require else 0)
    kernels = build()
    tools = cuda_sass.find_tools(ROOT / "build" / "cuda-tools")
    accesses = cuda_sass.disassemble(PRODUCT / "_ops.so", tools) if tools else None
    rows = table(kernels, accesses, every=arguments.all)
    print_table(rows)
    check_link()
    if accesses is None:
        print("cuda-check: widths of accesses were NOT checked: no cuobjdump and nvdisasm")
    faults = list(broken_promises(kernels, accesses))
    if accesses is None and arguments.require:
        faults.append("the machine code could not be read (pip install triton)")
    if faults:
        raise SystemExit("cuda-check:\n" + "\n".join(f"  {fault}" for fault in faults))
    if arguments.write is not None:
        write_report(arguments.write, rows)
    print("compiled and linked; no GPU executed any of it")


if __name__ == "__main__":
    main()

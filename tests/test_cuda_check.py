"""tools/cuda_check.py: what it reads out of machine code, and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"

SASS = """
Fatbin elf code:
arch = sm_80
\t\tFunction : adamw
        /*0010*/                   LDG.E.128 R8, [R6.64] ;     /* 0x0000001406087981 */
        /*0020*/              @!P0 LDG.E R8, [R6.64] ;         /* 0x0000001406087981 */
        /*0030*/               @P1 STG.E.U16 [R4.64], R8 ;     /* 0x0000001406087981 */
        /*0040*/                   STG.E.128.STRONG.SM [R4.64], R8 ;   /* 0x00 */
        /*0050*/                   STL [R1], R8 ;              /* 0x0000001406087981 */
        /*0060*/                   LDS R1, [R2] ;              /* 0x0000001406087981 */
arch = sm_90a
\t\tFunction : adamw
        /*0010*/                   LDG.E.64.CONSTANT R8, desc[UR4][R6.64] ;   /* 0x00 */
"""


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The tool, with the modules beside it."""
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("cuda_check", TOOLS / "cuda_check.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["cuda_check"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def test_accesses_are_counted_by_width(check: ModuleType) -> None:
    found = check.cuda_sass.parse_sass(SASS)
    assert dataclasses.astuple(found["adamw", "sm_80"]) == (1, 1, 1, 1, 1)
    assert dataclasses.astuple(found["adamw", "sm_90a"]) == (0, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "expected"),
    [
        (32, 256, 0, 1.0),  # 8 blocks of 8 warps
        (40, 256, 0, 0.75),  # 65536 / (40 x 256) = 6.4 blocks
        (128, 512, 0, 0.25),  # 1 block of 16 warps
        (32, 32, 0, 0.5),  # 32 blocks are the limit
        (32, 256, 80 << 10, 0.25),  # 164 KiB hold two
    ],
)
def test_occupancy(
    check: ModuleType, registers: int, threads: int, shared: int, expected: float
) -> None:
    assert check.cuda_sass.occupancy(registers, threads, shared, "sm_80") == expected


def test_broken_promises_are_named(check: ModuleType) -> None:
    good = check.Kernel(
        source="adamw.cu",
        symbol="adamw",
        name="adamw_kernel<float, 4>",
        arch="sm_80",
        registers=40,
        stack_bytes=0,
        spill_stores=0,
        spill_loads=0,
        shared_bytes=0,
    )
    fine = check.cuda_sass.Accesses(4, 4, 3, 3, 0)

    def faults(kernel: object, found: object) -> list[str]:
        return list(check.broken_promises([kernel], {("adamw", "sm_80"): found}))

    assert faults(good, fine) == []
    spills = dataclasses.replace(good, stack_bytes=8, spill_stores=8, spill_loads=4)
    assert "spills 12 bytes" in faults(spills, fine)[0]
    assert "8 bytes of arrays" in faults(dataclasses.replace(good, stack_bytes=8), fine)[0]
    scalar = dataclasses.replace(fine, narrow_loads=20)
    assert "20 loads of less than 16 bytes" in faults(good, scalar)[0]
    assert "no load of 16 bytes" in faults(good, dataclasses.replace(fine, wide_loads=0))[0]
    assert "is not listed" in faults(dataclasses.replace(good, name="other<float>"), fine)[0]
    # What handles unaligned tensors promises nothing.
    assert faults(dataclasses.replace(good, name="adamw_kernel<float, 1>"), scalar) == []

"""The smaller of what the machine and what the control group can still give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megacore import system_memory
from megacore.system_memory import available_bytes, memory_limit


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(system_memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(system_memory, "_GROUP", tmp_path)
    return tmp_path


def test_a_system_that_says_nothing(system: Path) -> None:
    assert available_bytes() == float("inf")
    assert memory_limit() is None


def test_the_machine(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal:   2000 kB\nMemFree: 1 kB\nMemAvailable:  1000 kB\n")
    (system / "memory.max").write_text("max\n")
    assert available_bytes() == 1000 * 1024
    assert memory_limit() is None


def test_a_control_group(system: Path) -> None:
    (system / "meminfo").write_text("MemAvailable:  1000 kB\n")
    (system / "memory.max").write_text("600000\n")
    (system / "memory.current").write_text("500000\n")
    (system / "memory.stat").write_text("anon 1\ninactive_file 20000\nactive_file 7\n")
    assert available_bytes() == 120_000
    assert memory_limit() == 600_000
    (system / "memory.current").write_text("700000\n")
    assert available_bytes() == 0


def test_this_machine_has_some() -> None:
    assert 1 << 20 < available_bytes() < 1 << 60


_FAULTS = """
import ctypes, resource
from megacore.system_memory import keep_freed_memory
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    library.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
size = 64 << 20
faults()
print(faults(), int(keep_freed_memory()), faults(), faults())
"""


def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True)
    given_back, takes, _, kept = map(int, done.stdout.split())
    if not takes:
        pytest.skip("the allocator of this system has no such option")
    # 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB; kept ones cost none.
    assert given_back >= 32
    assert kept <= 8

"""CRC-32 of buffers, against zlib's and against xxHash's XXH3 in the same run.

    python benchmarks/bench_crc32.py [--repeats 9]

One thread, measured by the time its processor worked. Small buffers stay in the caches; the
largest does not, and shows what memory delivers. The forms take turns, so that what else the
machine does meets all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import zlib
from collections.abc import Callable

import xxhash

from megacore import _C

SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "256 MiB": 256 << 20}

# Bytes that each form goes through in one measurement.
BYTES_PER_REPEAT = 512 << 20


def gigabytes_per_second(checksum: Callable[[memoryview], object], data: memoryview) -> float:
    """Of as many calls as go through BYTES_PER_REPEAT."""
    calls = max(1, BYTES_PER_REPEAT // len(data))
    start = time.process_time()
    for _ in range(calls):
        checksum(data)
    return calls * len(data) / (time.process_time() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    forms: dict[str, Callable[[memoryview], object]] = {
        f"megacore ({_C.crc32_method()})": _C.crc32,
        "zlib.crc32": zlib.crc32,
        "xxhash.xxh3_64": xxhash.xxh3_64_intdigest,
    }
    sample = os.urandom(100003)
    assert _C.crc32(sample) == zlib.crc32(sample)
    print(f"{os.cpu_count()} CPUs, zlib {zlib.ZLIB_RUNTIME_VERSION}, xxhash {xxhash.VERSION}")
    print("| GB/s, median of ratios to zlib | " + " | ".join(SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    rates: dict[str, dict[str, list[float]]] = {form: {} for form in forms}
    for size_name, size in SIZES.items():
        data = memoryview(bytearray(os.urandom(min(size, 1 << 20))) * max(1, size >> 20))
        for _ in range(repeats):
            for form, checksum in forms.items():
                rate = gigabytes_per_second(checksum, data)
                rates[form].setdefault(size_name, []).append(rate)
    for form, by_size in rates.items():
        cells = []
        for size_name, found in by_size.items():
            peers = rates["zlib.crc32"][size_name]
            ratio = statistics.median(a / b for a, b in zip(found, peers, strict=True))
            cells.append(f"{statistics.median(found):.1f} ({ratio:.1f}x)")
        print(f"| {form} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

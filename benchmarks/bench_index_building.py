"""Building the three sample indices, against numpy shuffles plus a direct C++ loop.

    python benchmarks/bench_index_building.py [--documents 100000000] [--length 2048] [--repeats 3]

Both sides build the same indices of one epoch, in turns, in one process that is pinned to one
core; results are compared. Times on one core are processor seconds. Documents have 1 to 1,199
tokens, 600 on average. Memory is the growth of the peak resident size of a fresh process that
builds once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from data_peers import load_peers, on_one_core, pointer, spread, timed, timed_on_cpu

from megacore import _C


def make_lengths(documents: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1200, documents, dtype=np.int32)


def make_plan(lengths: np.ndarray, length: int):
    return _C.data.plan_gpt_indices(
        "benchmark",
        first_document=0,
        last_document=len(lengths),
        tokens_per_epoch=int(lengths.sum(dtype=np.int64)),
        sequence_length=length,
        num_samples=None,
    )


def peer(library, lengths: np.ndarray, plan, length: int):
    random = np.random.RandomState(1234)
    documents = np.arange(len(lengths), dtype=np.int32)
    random.shuffle(documents)
    samples = np.empty((plan.num_samples + 1, 2), dtype=np.int64)
    library.direct_sample_index(
        pointer(lengths),
        pointer(documents),
        ctypes.c_int64(len(documents)),
        ctypes.c_int32(length),
        ctypes.c_int64(plan.num_samples),
        pointer(samples),
    )
    shuffle = np.arange(plan.num_samples, dtype=np.uint32)
    random.shuffle(shuffle)
    return documents, samples, shuffle


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure_memory(documents: int, length: int) -> None:
    lengths = make_lengths(documents)
    plan = make_plan(lengths, length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from the current size
    before = peak_bytes()
    arrays = _C.data.build_gpt_indices(plan, lengths, seed=1234)
    grown = peak_bytes() - before
    print(json.dumps({"grown": grown, "arrays": sum(array.nbytes for array in arrays)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="only build once and print the peak")
    args = parser.parse_args()
    if args.memory:
        measure_memory(args.documents, args.length)
        return
    lengths = make_lengths(args.documents)
    plan = make_plan(lengths, args.length)
    print(
        f"{args.documents:,} documents, {plan.tokens_per_epoch:,} tokens, "
        f"{plan.num_samples:,} samples of {args.length}"
    )
    threads, _ = timed(lambda: _C.data.build_gpt_indices(plan, lengths, seed=1234, num_threads=2))
    both = [threads] + [
        timed(lambda: _C.data.build_gpt_indices(plan, lengths, seed=1234, num_threads=2))[0]
        for _ in range(args.repeats - 1)
    ]
    on_one_core()
    library = load_peers()
    ours, theirs = [], []
    for _ in range(args.repeats):
        seconds, arrays = timed_on_cpu(
            lambda: _C.data.build_gpt_indices(plan, lengths, seed=1234, num_threads=1)
        )
        ours.append(seconds)
        seconds, expected = timed_on_cpu(lambda: peer(library, lengths, plan, args.length))
        theirs.append(seconds)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))
    output = subprocess.run(
        [sys.executable, __file__, "--memory", "--documents", str(args.documents),
         "--length", str(args.length)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    memory = json.loads(output)
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"megacore, one core:            {spread(ours)}")
    print(f"megacore, two threads:         {spread(both)}")
    print(f"numpy + direct loop, one core: {spread(theirs)}")
    print(f"ratio on one core: {ratio:.1f}x; results equal")
    print(
        f"memory: {memory['grown'] / 1e9:.2f} GB for arrays of {memory['arrays'] / 1e9:.2f} GB, "
        f"{memory['grown'] / memory['arrays']:.2f}x"
    )


if __name__ == "__main__":
    main()

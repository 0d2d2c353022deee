"""Blending indices, against the direct argmax loop in C++ (-O3).

    python benchmarks/bench_blending.py [--size 100000000] [--datasets 100] [--repeats 3]

Both sides fill arrays that exist already, in turns, in one process pinned to one core; results are
compared. Times are processor seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics

import numpy as np
from data_peers import load_peers, on_one_core, pointer, spread, timed_on_cpu

from megacore import _C


def peer(library, weights: np.ndarray, datasets: np.ndarray, samples: np.ndarray) -> None:
    counts = np.empty(len(weights), np.int64)
    library.direct_blend(
        pointer(weights),
        ctypes.c_int32(len(weights)),
        ctypes.c_int64(len(datasets)),
        pointer(counts),
        pointer(datasets),
        pointer(samples),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=100_000_000)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", choices=["random", "tied", "equal"], default="random")
    args = parser.parse_args()
    on_one_core()
    library = load_peers()
    rng = np.random.default_rng(0)
    weights = {
        "random": rng.random(args.datasets),
        "tied": rng.integers(1, 10, args.datasets).astype(np.float64),
        "equal": np.ones(args.datasets),
    }[args.weights]
    weights /= weights.sum()
    arrays, expected = (
        (np.zeros(args.size, np.int16), np.zeros(args.size, np.int64)) for _ in range(2)
    )
    ours, theirs = [], []
    for _ in range(args.repeats):
        ours.append(timed_on_cpu(lambda: _C.data.fill_blend(weights, *arrays))[0])
        theirs.append(timed_on_cpu(lambda: peer(library, weights, *expected))[0])
        assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))
    rates = [args.size / statistics.median(seconds) / 1e6 for seconds in (ours, theirs)]
    print(f"{args.size:,} samples of {args.datasets} datasets, {args.weights} weights")
    print(f"megacore:    {spread(ours)}, {rates[0]:.1f} M samples/s")
    print(f"direct loop: {spread(theirs)}, {rates[1]:.1f} M samples/s")
    print(f"ratio: {rates[0] / rates[1]:.1f}x; results equal")


if __name__ == "__main__":
    main()

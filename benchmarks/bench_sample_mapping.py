"""Maps of samples over sentences (BERT, T5), against a direct C++ loop of two passes.

    python benchmarks/bench_sample_mapping.py [--sentences 10000000] [--epochs 1 10] [--repeats 3]

Both sides make the same map, in turns, in one process that is pinned to one core; results are
compared. Times are processor seconds, without the copy of the peer's rows. Documents have 1 to 39
sentences (20 on average) of 3 to 56 tokens, some of them one that is too long; samples have 509
tokens. Memory is the growth of the peak resident size of a fresh process that builds once.
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
from bench_index_building import peak_bytes
from data_peers import load_peers, on_one_core, pointer, spread, timed_on_cpu

from megacore import _C

MAX_LENGTH, SHORT, SEED, MIN_SENTENCES = 509, 0.1, 1234, 2


def make_corpus(sentences: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    per_document = random.integers(1, 40, sentences // 20)
    boundaries = np.concatenate([[0], np.cumsum(per_document)]).astype(np.int64)
    sizes = random.integers(3, 57, int(boundaries[-1]), dtype=np.int32)
    sizes[random.integers(0, len(sizes), len(sizes) // 10_000)] = 600
    return boundaries, sizes


def build(boundaries: np.ndarray, sizes: np.ndarray, num_samples: int | None) -> np.ndarray:
    request = _C.data.MappingRequest(
        "benchmark",
        first_document=0,
        last_document=len(boundaries) - 1,
        num_samples=num_samples,
        max_length=MAX_LENGTH,
        min_sentences=MIN_SENTENCES,
        seed=SEED,
    )
    return _C.data.map_spans(sizes, boundaries, request, short_probability=SHORT)


def peer(library, boundaries: np.ndarray, sizes: np.ndarray, num_samples: int) -> int:
    return library.direct_sentence_map(
        pointer(boundaries),
        ctypes.c_int64(len(boundaries) - 1),
        pointer(sizes),
        ctypes.c_int64(num_samples),
        ctypes.c_int32(MAX_LENGTH),
        ctypes.c_int32(round(1 / SHORT)),
        ctypes.c_int32(SEED),
        ctypes.c_int32(MIN_SENTENCES),
    )


def measure_memory(sentences: int, num_samples: int) -> None:
    boundaries, sizes = make_corpus(sentences)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from the current size
    before = peak_bytes()
    rows = build(boundaries, sizes, num_samples)
    print(json.dumps({"grown": peak_bytes() - before, "rows": rows.nbytes}))


def compare(library, sentences: int, epochs: int, repeats: int) -> None:
    boundaries, sizes = make_corpus(sentences)
    per_epoch = len(build(boundaries, sizes, None))
    wanted = per_epoch * (epochs - 1) + 1
    ours, theirs = [], []
    for _ in range(repeats):
        seconds, rows = timed_on_cpu(lambda: build(boundaries, sizes, wanted))
        ours.append(seconds)
        seconds, count = timed_on_cpu(lambda: peer(library, boundaries, sizes, wanted))
        theirs.append(seconds)
        expected = np.empty((count, 3), np.uint32)
        library.take_rows(pointer(expected))
        assert np.array_equal(rows, expected)
    command = [sys.executable, __file__, "--memory", str(wanted), "--sentences", str(sentences)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    memory = json.loads(output)
    print(f"{len(sizes):,} sentences, {epochs} epochs, {len(rows):,} samples:")
    print(f"  megacore:    {spread(ours)}")
    print(f"  direct loop: {spread(theirs)}")
    print(f"  ratio {statistics.median(theirs) / statistics.median(ours):.1f}x; results equal")
    print(f"  memory: {memory['grown'] / 1e6:.0f} MB for a map of {memory['rows'] / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=int, default=10_000_000)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, help="only build so many samples, print the peak")
    args = parser.parse_args()
    if args.memory is not None:
        measure_memory(args.sentences, args.memory)
        return
    on_one_core()
    library = load_peers()
    library.direct_sentence_map.restype = ctypes.c_int64
    for epochs in args.epochs:
        compare(library, args.sentences, epochs, args.repeats)


if __name__ == "__main__":
    main()

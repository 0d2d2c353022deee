"""How long training stands still for a checkpoint: written while it waits, or in the background.

    python benchmarks/bench_async_save.py [--parameters 124] [--repeats 5] [--directory DIR]

The state is that of Adam with bf16 weights: weights, fp32 main parameters and two moments, 14 bytes
for each parameter. "stall" is the time until the call returns, after which the state may change;
"prepared" is what finding the memory for the copies takes when training starts. Ratios are those of
medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint import SaveDirectory
from megacore.checkpoint.background import BackgroundWriter
from megacore.checkpoint.content import Content, collect

_PER_TENSOR = 4 << 20


def make_content(iteration: int, num_parameters: int) -> Content:
    """The state of a model with this many parameters, in tensors of 4 Mi elements."""
    generator = torch.Generator().manual_seed(0)
    main = torch.randn(_PER_TENSOR // 1024, 1024, generator=generator)
    tensors: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for i in range(max(1, num_parameters // _PER_TENSOR)):
        tensors["model"][f"part{i}.weight"] = main.bfloat16()
        for kind in ("main_param", "exp_avg", "exp_avg_sq"):
            tensors["optimizer"][f"{kind}.part{i}.weight"] = main.clone()
    return collect(iteration, tensors=tensors, values={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=124, help="millions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None)
    words = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench_async_save_", dir=words.directory))
    content = make_content(1, words.parameters * 1_000_000)
    writer = BackgroundWriter([root / "background"])
    try:
        writer.wait_until_ready()
        start = time.perf_counter()
        writer.prepare([chunk.data.nbytes for chunk in content.chunks])
        prepared = time.perf_counter() - start
        direct, stalls, written = [], [], []
        with SaveDirectory(root / "direct") as place:
            for _ in range(words.repeats + 1):
                os.sync()
                start = time.perf_counter()
                place.write(content)
                direct.append(time.perf_counter() - start)
                os.sync()
                start = time.perf_counter()
                writer.submit(content)
                stalls.append(time.perf_counter() - start)
                written.append(writer.wait()["seconds"])
    finally:
        writer.close()
        shutil.rmtree(root, ignore_errors=True)
    waiting, stall = statistics.median(direct[1:]), statistics.median(stalls[1:])
    print(f"{content.num_bytes / 2**30:.2f} GiB, median of {words.repeats}")
    print(f"save while training waits   {waiting:7.3f} s")
    share = f"{100 * stall / waiting:.1f}%"
    print(f"stall of a background save  {stall:7.3f} s   {share} (first: {stalls[0]:.3f} s)")
    print(f"  prepared in               {prepared:7.3f} s")
    print(f"  written in the background {statistics.median(written[1:]):7.3f} s")


if __name__ == "__main__":
    main()

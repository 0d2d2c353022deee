"""Saving and loading a checkpoint against torch.save / torch.load in the same run.

    python benchmarks/bench_checkpoint.py [--mib 1024] [--repeats 5] [--directory DIR]

Ours: checksums of every tensor, fsync of every file and directory, publish by rename; loading
verifies every checksum while it fills tensors that exist. Peers: `torch.save` with and without
fsync afterwards (without it nothing is durable when it returns), and `torch.load(mmap=True)`
followed by `copy_` into tensors that exist (nothing is verified).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint import load_checkpoint, save_checkpoint


def make_tensors(num_bytes: int) -> dict[str, dict[str, Tensor]]:
    """bf16 weights with fp32 main parameters and two moments, in tensors of some MiB."""
    per_tensor = 4 << 20
    count = max(1, num_bytes // (14 * per_tensor))
    generator = torch.Generator().manual_seed(0)
    mains = {
        f"layer.{i}.weight": torch.randn(per_tensor // 1024, 1024, generator=generator)
        for i in range(count)
    }
    optimizer = {
        f"{kind}.{name}": main.clone()
        for kind in ("main_param", "exp_avg", "exp_avg_sq")
        for name, main in mains.items()
    }
    return {
        "model": {name: main.bfloat16() for name, main in mains.items()},
        "optimizer": optimizer,
    }


def median_seconds(work: Callable[[int], None], repeats: int) -> float:
    """Median over repeats; every repeat gets its number."""
    times = []
    for i in range(repeats):
        os.sync()
        start = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench_checkpoint_", dir=arguments.directory))
    tensors = make_tensors(arguments.mib << 20)
    size = sum(t.nbytes for group in tensors.values() for t in group.values())
    peer = root / "peer.pt"

    def save_ours(i: int) -> None:
        save_checkpoint(root / "ours", i + 1, tensors=tensors, values={}, retain_last=1)

    def save_peer(_: int) -> None:
        peer.unlink(missing_ok=True)
        torch.save(tensors, peer)

    def save_peer_durably(i: int) -> None:
        save_peer(i)
        descriptor = os.open(peer, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    targets = {
        g: {n: torch.empty_like(t) for n, t in group.items()} for g, group in tensors.items()
    }

    def load_ours(_: int) -> None:
        checkpoint = load_checkpoint(root / "ours")
        for group, wanted in targets.items():
            checkpoint.load_into(group, wanted)

    def load_peer(_: int) -> None:
        for group, stored in torch.load(peer, mmap=True, weights_only=True).items():
            for name, tensor in stored.items():
                targets[group][name].copy_(tensor)

    try:
        results = {
            "save, megacore (checksums, durable)": median_seconds(save_ours, arguments.repeats),
            "save, torch.save + fsync": median_seconds(save_peer_durably, arguments.repeats),
            "save, torch.save (not durable)": median_seconds(save_peer, arguments.repeats),
            "load, megacore (verified)": median_seconds(load_ours, arguments.repeats),
            "load, torch.load + copy (not verified)": median_seconds(load_peer, arguments.repeats),
        }
    finally:
        shutil.rmtree(root)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {size / 2**30:.2f} GiB")
    print("| what | seconds | GB/s |")
    print("|---|---|---|")
    for what, seconds in results.items():
        print(f"| {what} | {seconds:.2f} | {size / seconds / 1e9:.2f} |")


if __name__ == "__main__":
    main()

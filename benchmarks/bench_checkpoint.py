"""Saving and loading a 124M-parameter model with Adam state, against PyTorch in the same run.

    python benchmarks/bench_checkpoint.py [--processes 1 2] [--repeats 5] [--directory DIR]

Weights are bfloat16, main parameters and both moments float32: 1.7 GB in the shapes of GPT-2. With
two processes each has half of every tensor, and all of the norms are with the first one.

Ours: checksums of every chunk, every file and directory on the device, published by a rename;
loading verifies every checksum. Peers: `torch.distributed.checkpoint` (its files are flushed too;
nothing is verified), and, for one process, `torch.save` with an fsync and `torch.load` with a
memory map and copies into the same tensors. All of them write beside the checkpoint of the turn
before and then remove that one. Loads find the files in the page cache: they are read once before.
All kinds take turns; a ratio is the median over the turns of peer time / our time. CPU seconds are
those of the first process, in user and kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from megacore.checkpoint import SaveDirectory, load_checkpoint
from megacore.checkpoint.pieces import Part
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout
from megacore.training.checkpoint_parts import GroupWriters

LAYERS, HIDDEN, VOCABULARY, POSITIONS = 12, 768, 50304, 1024
KINDS = ("main_param", "exp_avg", "exp_avg_sq")


def shapes() -> dict[str, tuple[int, ...]]:
    """Parameters of the model."""
    found: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embedding.position_embeddings.weight": (POSITIONS, HIDDEN),
        "decoder.final_layernorm.weight": (HIDDEN,),
        "decoder.final_layernorm.bias": (HIDDEN,),
    }
    layer = {
        "self_attention.linear_qkv.layer_norm_weight": (HIDDEN,),
        "self_attention.linear_qkv.layer_norm_bias": (HIDDEN,),
        "self_attention.linear_qkv.weight": (3 * HIDDEN, HIDDEN),
        "self_attention.linear_qkv.bias": (3 * HIDDEN,),
        "self_attention.linear_proj.weight": (HIDDEN, HIDDEN),
        "self_attention.linear_proj.bias": (HIDDEN,),
        "mlp.linear_fc1.layer_norm_weight": (HIDDEN,),
        "mlp.linear_fc1.layer_norm_bias": (HIDDEN,),
        "mlp.linear_fc1.weight": (4 * HIDDEN, HIDDEN),
        "mlp.linear_fc1.bias": (4 * HIDDEN,),
        "mlp.linear_fc2.weight": (HIDDEN, 4 * HIDDEN),
        "mlp.linear_fc2.bias": (HIDDEN,),
    }
    for i in range(LAYERS):
        found |= {f"decoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def make_parts(rank: int, size: int) -> dict[str, list[Part]]:
    """What a process has: half of every matrix, or everything."""
    generator = torch.Generator().manual_seed(rank)
    parts: dict[str, list[Part]] = {"model": [], "optimizer": []}
    for name, shape in shapes().items():
        cut = size > 1 and len(shape) > 1
        if not cut and rank > 0:
            continue
        settings = {"shard_dim": 0, "num_shards": size, "shard": rank} if cut else {}
        layouts = {
            kind: ParamLayout(name=f"{kind}.{name}", full_shape=shape, **settings) for kind in KINDS
        }
        model = ParamLayout(name=name, full_shape=shape, **settings)
        values = torch.randn(model.local_shape, generator=generator)
        parts["model"].append(Part(model, values.bfloat16()))
        parts["optimizer"] += [Part(layout, values.clone()) for layout in layouts.values()]
    return parts


def peer_state(parts: dict[str, list[Part]], size: int) -> dict[str, Tensor]:
    """The same tensors as torch.distributed.checkpoint wants them."""
    own = {part.layout.name: part for group in parts.values() for part in group}
    if size == 1:
        return {name: part.data for name, part in own.items()}
    mesh = init_device_mesh("cpu", (size,))
    state: dict[str, Tensor] = {}
    for part in own.values():
        if part.layout.is_sharded:
            state[part.layout.name] = DTensor.from_local(
                part.data, mesh, [Shard(0)], run_check=False
            )
        else:
            state[part.layout.name] = part.data
    return state


class Trial:
    """One process of a measurement."""

    def __init__(self, directory: Path, rank: int, size: int) -> None:
        self._root, self._rank, self._size = directory, rank, size
        self._parts = make_parts(rank, size)
        self._peer = peer_state(self._parts, size)
        group = Group("world")
        if size > 1:
            group = Group("world", tuple(range(size)), rank, dist.group.WORLD)
        self._writers = GroupWriters(group, torch.device("cpu"))
        self.num_bytes = sum(p.data.nbytes for group in self._parts.values() for p in group)

    def barrier(self) -> None:
        if self._size > 1:
            dist.barrier()

    def save(self, turn: int) -> None:
        with SaveDirectory(self._root / "ours", writers=self._writers) as target:
            target.save(turn + 1, tensors={}, values={}, parts=self._parts, retain_last=1)

    def load(self, _: int) -> None:
        checkpoint = load_checkpoint(self._root / "ours")
        others = {name for group in ("model", "optimizer") for name in checkpoint.names(group)}
        for group, parts in self._parts.items():
            checkpoint.fill(group, parts, others=others)

    def save_dcp(self, turn: int) -> None:
        dcp.save(self._peer, checkpoint_id=self._root / f"dcp_{turn}", no_dist=self._size == 1)
        if self._rank == 0:
            shutil.rmtree(self._root / f"dcp_{turn - 1}", ignore_errors=True)

    def load_dcp(self, turn: int) -> None:
        dcp.load(self._peer, checkpoint_id=self._root / f"dcp_{turn}", no_dist=self._size == 1)

    def save_torch(self, _: int) -> None:
        path = self._root / "peer.pt"
        scratch = self._root / "peer.new"
        torch.save(self._peer, scratch)
        descriptor = os.open(scratch, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        scratch.replace(path)

    def load_torch(self, _: int) -> None:
        stored = torch.load(self._root / "peer.pt", mmap=True, weights_only=True)
        for name, tensor in stored.items():
            self._peer[name].copy_(tensor)

    def kinds(self) -> dict[str, Callable[[int], None]]:
        """What is measured, in the order of a turn."""
        found = {
            "save, megacore": self.save,
            "save, torch.distributed.checkpoint": self.save_dcp,
            "load, megacore": self.load,
            "load, torch.distributed.checkpoint": self.load_dcp,
        }
        if self._size == 1:
            found |= {"save, torch.save": self.save_torch, "load, torch.load": self.load_torch}
        return found


def warm(root: Path) -> None:
    """Brings every file into the page cache."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def measure(directory: Path, rank: int, size: int, repeats: int) -> dict[str, list[list[float]]]:
    """[Seconds, CPU seconds] of every kind in every turn; the first turn warms up."""
    trial = Trial(directory, rank, size)
    times: dict[str, list[list[float]]] = {name: [] for name in trial.kinds()}
    for turn in range(repeats + 1):
        for name, work in trial.kinds().items():
            if name.startswith("save"):
                os.sync()
            elif rank == 0:
                warm(directory)
            trial.barrier()
            start, busy = time.perf_counter(), time.process_time()
            work(turn)
            busy = time.process_time() - busy
            trial.barrier()
            if turn > 0:
                times[name].append([time.perf_counter() - start, busy])
    return times


def work(rank: int, directory: str, size: int, repeats: int) -> None:
    """A process of several."""
    warnings.filterwarnings("ignore")
    store = dist.FileStore(f"{directory}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    times = measure(Path(directory), rank, size, repeats)
    if rank == 0:
        Path(directory, "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()


def report(size: int, times: dict[str, list[list[float]]], num_bytes: int) -> None:
    """Prints a table."""
    print(f"\n{size} process{'es' if size > 1 else ''}, {num_bytes / 1e9:.2f} GB")
    print("| what | median s | GB/s | CPU s | megacore is faster by |")
    print("|---|---|---|---|---|")
    for name, rows in times.items():
        ours = times[f"{name.split(',')[0]}, megacore"]
        ratio = statistics.median(a[0] / b[0] for a, b in zip(rows, ours, strict=True))
        median, busy = (statistics.median(column) for column in zip(*rows, strict=True))
        speed = num_bytes / median / 1e9
        print(f"| {name} | {median:.2f} | {speed:.2f} | {busy:.2f} | {ratio:.2f} |")


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    per_parameter = 2 + 4 * len(KINDS)
    num_bytes = per_parameter * sum(torch.Size(shape).numel() for shape in shapes().values())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in arguments.processes:
        root = Path(tempfile.mkdtemp(prefix="bench_checkpoint_", dir=arguments.directory))
        try:
            if size == 1:
                times: dict[str, Any] = measure(root, 0, 1, arguments.repeats)
            else:
                mp.spawn(work, (str(root), size, arguments.repeats), nprocs=size)
                times = json.loads((root / "times.json").read_text())
        finally:
            shutil.rmtree(root)
        report(size, times, num_bytes)


if __name__ == "__main__":
    main()

"""Files of torch.save by megacore and by torch, in one run.

    python benchmarks/bench_torch_files.py [--mib 1024] [--repeats 7] [--directory /dev/shm]

Writing makes a file with a checksum of every tensor, on both sides; nothing is flushed, and the
default directory is memory, so that the programs are compared and not the device. Reading fills
tensors that exist from a memory map; torch verifies nothing. Times are of the processor, in one
thread; the forms take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megacore.checkpoint.torch_files import TorchFileStream, read_torch_file


def make_state(num_bytes: int) -> dict[str, torch.Tensor]:
    """fp32 tensors of 8 MiB, and as many small ones."""
    state = {}
    for i in range(max(1, num_bytes >> 23)):
        state[f"layers.{i}.weight"] = torch.randn(2048, 1024)
        state[f"layers.{i}.bias"] = torch.randn(1024)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state = make_state(arguments.mib << 20)
    size = sum(tensor.nbytes for tensor in state.values())
    targets = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        ours, theirs = Path(folder, "ours.pt"), Path(folder, "theirs.pt")

        def write_ours() -> None:
            with ours.open("wb", buffering=0) as file:
                file.writelines(TorchFileStream(state).chunks())

        def read_ours(verify: bool) -> None:
            for name, tensor in read_torch_file(ours, verify=verify).items():
                targets[name].copy_(tensor)

        def read_theirs() -> None:
            for name, tensor in torch.load(theirs, mmap=True).items():
                targets[name].copy_(tensor)

        forms: dict[str, Callable[[], None]] = {
            "write, megacore": write_ours,
            "write, torch.save": lambda: torch.save(state, theirs),
            "read, megacore": lambda: read_ours(False),
            "read, megacore, verified": lambda: read_ours(True),
            "read, torch.load(mmap=True), not verified": read_theirs,
        }
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(arguments.repeats):
            for form, work in forms.items():
                start = time.process_time()
                work()
                seconds[form].append(time.process_time() - start)
        for name, tensor in state.items():
            assert torch.equal(targets[name], tensor)
    print(f"torch {torch.__version__}, {len(state)} tensors, {size / 2**30:.2f} GiB")
    print("| what | seconds | GB/s |")
    print("|---|---|---|")
    for form, found in seconds.items():
        median = statistics.median(found)
        print(f"| {form} | {median:.2f} | {size / median / 1e9:.2f} |")


if __name__ == "__main__":
    main()

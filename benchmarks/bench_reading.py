"""Reading shuffled batches, against a plain Python dataset, alone and in a torch DataLoader.

    python benchmarks/bench_reading.py [--length 1024] [--tokens 150000000] [--repeats 3]

The file is in the page cache and the process pinned to one core. "gather" writes tokens and labels
into arrays that are kept; "loader" is `build_loader` with masks, positions and new tensors for
every batch. The peer maps the same files with numpy, finds the same samples in the same indices
and makes the same four tensors; it is read over fewer samples, since it is slower.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data_peers import on_one_core, timed, timed_on_cpu
from torch.utils.data import DataLoader, Dataset

from megacore.data import build_datasets, build_loader
from megacore.data.config import DataConfig
from megacore.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megacore.data.loader import make_batch

VOCABULARY = 50257


class Identity:
    """What build_datasets asks of a tokenizer."""

    eod, pad = 50256, -1

    def identity(self) -> dict[str, object]:
        return {"class": "Benchmark", "tokenizer_path": [None]}


class PlainDataset(Dataset):
    """The samples of `ours` by numpy."""

    def __init__(self, prefix: str, ours, length: int) -> None:
        indexed = IndexedDataset(prefix)
        self.tokens = np.memmap(f"{prefix}.bin", dtype=np.uint16, mode="r")
        self.starts = (indexed.byte_offsets // 2).tolist()
        self.lengths = indexed.sequence_lengths.tolist()
        self.indices = ours.indices
        self.length = length

    def __len__(self) -> int:
        return len(self.indices["shuffle_index"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.indices["shuffle_index"][index]
        (first, begin), (last, end) = self.indices["sample_index"][row : row + 2]
        parts = []
        for p in range(first, last + 1):
            document = self.indices["document_index"][p]
            start = self.starts[document]
            low = start + (begin if p == first else 0)
            high = start + (end + 1 if p == last else self.lengths[document])
            parts.append(self.tokens[low:high])
        text = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        return {
            "tokens": text[:-1],
            "labels": text[1:],
            "loss_mask": torch.ones(self.length),
            "position_ids": torch.arange(self.length),
        }


def rate(
    samples: int, repeats: int, function: Callable[[], None], *, in_workers: bool = False
) -> float:
    """Samples per second of processor time (of the clock, where other processes do the work)."""
    clock = timed if in_workers else timed_on_cpu
    return samples / statistics.median(clock(function)[0] for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=150_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.length, args.tokens, args.repeats)


def run(folder: Path, length: int, tokens: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1500, tokens // 750)
    prefix = str(folder / "data")
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        ids = rng.integers(0, VOCABULARY, int(lengths.sum()), dtype=np.uint16)
        writer.add_documents(ids, lengths)
    data = DataConfig(data_path=(prefix,), split="1", seq_length=length, num_workers=0).resolved()
    wanted = int(lengths.sum()) // length - 1
    train = build_datasets(data, Identity(), seed=1, num_samples=(wanted, None, None)).train
    plain = PlainDataset(prefix, train, length)
    on_one_core()
    count = len(train)
    print(f"{count:,} samples of {length} tokens, {2 * int(lengths.sum()) / 1e6:.0f} MB, one core")
    for size in (8, 64):
        outputs = [np.empty((size, length), np.int64) for _ in range(2)]
        rows = np.arange(size)

        def gather(size=size, outputs=outputs, rows=rows) -> None:
            for start in range(0, count - size + 1, size):
                train.gather(
                    np.arange(start, start + size), rows,
                    vocab_size=VOCABULARY, tokens=outputs[0], labels=outputs[1],
                )  # fmt: skip

        def load(size=size) -> None:
            make = partial(make_batch, vocab_size=VOCABULARY)
            for _ in build_loader(
                train, make=make, data=data, micro_batch_size=size, consumed_samples=0
            ):
                pass

        def read_plain(size=size) -> None:
            for start in range(0, count // 8, size):
                items = [plain[i] for i in range(start, start + size)]
                for name in items[0]:
                    torch.stack([item[name] for item in items])

        def read_workers(size=size) -> None:
            loader = DataLoader(plain, batch_size=size, num_workers=1)
            for number, _ in enumerate(loader):
                if number * size > count // 8:
                    break

        rates = {
            "gather": rate(count, repeats, gather),
            "loader": rate(count, repeats, load),
            "plain Python dataset": rate(count // 8, repeats, read_plain),
            "plain dataset, DataLoader with 1 worker": rate(
                count // 8, repeats, read_workers, in_workers=True
            ),
        }
        for i in (0, count // 2, count - 1):
            assert torch.equal(plain[i]["tokens"], torch.from_numpy(train[i].tokens))
            assert torch.equal(plain[i]["labels"], torch.from_numpy(train[i].labels))
        print(f"batches of {size}:")
        for name, value in rates.items():
            print(f"  {name:40s} {value:10,.0f} samples/s")
        ratio = rates["loader"] / rates["plain Python dataset"]
        print(f"  loader / plain Python dataset: {ratio:.1f}x")


if __name__ == "__main__":
    main()

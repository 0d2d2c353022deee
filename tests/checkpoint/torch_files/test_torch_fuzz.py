"""Random damage to files: a typed error, or the value that was stored."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_file_cases import assert_same

from megacore.checkpoint.torch_files import read_torch_file, torch_file_bytes
from megacore.checkpoint.torch_files.dcp import (
    METADATA_NAME,
    BytesEntry,
    DcpMetadata,
    StorageSpan,
    TensorEntry,
    encode_dcp_metadata,
    read_dcp_metadata,
)
from megacore.errors import CheckpointError

VALUE = {
    "model": {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)},
    "args": argparse.Namespace(lr=0.1, dtype=torch.float16, names=["a", "b"]),
    "rng": [np.arange(4, dtype=np.uint32), (1, 2.5, None, True), {1, 2}, b"state"],
    "iteration": 1 << 40,
}

METADATA = DcpMetadata(
    {
        "w": TensorEntry((4, 6), torch.float32, (((0, 0), (2, 6)), ((2, 0), (2, 6)))),
        "o": BytesEntry(),
    },
    {
        ("w", (0, 0), 0): StorageSpan("__0_0.distcp", 0, 100),
        ("w", (2, 0), 1): StorageSpan("__1_0.distcp", 0, 100),
        ("o", None, None): StorageSpan("__0_0.distcp", 100, 10),
    },
    extra={"mcore_data": {"w": {"nd_reformulated_orig_global_shape": (4, 6)}}},
)

Mutation = Callable[[bytearray, random.Random], None]


def flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def set_number(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at : at + 4] = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]).to_bytes(4, "little")


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 40)]


def insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 40))


def copy(data: bytearray, rng: random.Random) -> None:
    start, at, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 60)
    data[at : at + size] = data[start : start + size]


def swap(data: bytearray, rng: random.Random) -> None:
    """Whole opcodes, often: they are one byte."""
    one, other = rng.randrange(len(data)), rng.randrange(len(data))
    data[one], data[other] = data[other], data[one]


MUTATIONS: list[Mutation] = [flip_bit, set_byte, set_number, cut, remove, insert, copy, swap]


def mutate(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if damaged:
            rng.choice(MUTATIONS)(damaged, rng)
    return bytes(damaged)


def run(
    path: Path, data: bytes, read: Callable[[], object], seed: int, rounds: int, checked: bool
) -> int:
    """Number of damaged files that were read.

    Args:
        path: Where the damaged file goes.
        data: The intact file.
        read: Reads it.
        seed: Of the damage.
        rounds: Damaged files.
        checked: Everything is covered by checksums: whatever is read must be as before.
    """
    rng = random.Random(seed)
    path.write_bytes(data)
    intact, survived = read(), 0
    messages: list[str] = []
    for _ in range(rounds):
        damaged = mutate(data, rng)
        path.write_bytes(damaged)
        try:
            value = read()
        except CheckpointError as error:
            messages.append(str(error))
            continue
        survived += 1
        if checked or damaged == data:
            assert_same(value, intact)
    assert all(path.name in message for message in messages)
    return survived


def run_all(tmp_path: Path, seed: int, rounds: int) -> None:
    """A quarter of the rounds for each of: zip checked and not, the old format, metadata."""
    path = tmp_path / "fuzz"

    def read() -> object:
        return read_torch_file(path)

    def read_checked() -> object:
        return read_torch_file(path, verify=True)

    def read_metadata() -> object:
        metadata = read_dcp_metadata(tmp_path)
        return list(metadata.entries), list(metadata.storage)

    ours = torch_file_bytes(VALUE)
    assert 0 < run(path, ours, read_checked, seed, rounds // 4, checked=True) < rounds // 4
    run(path, ours, read, seed + 1, rounds // 4, checked=False)
    torch.save(VALUE, path, _use_new_zipfile_serialization=False)
    run(path, path.read_bytes(), read, seed + 2, rounds // 4, checked=False)
    data = encode_dcp_metadata(METADATA)
    run(tmp_path / METADATA_NAME, data, read_metadata, seed + 3, rounds // 4, checked=False)


def test_damaged_files(tmp_path: Path) -> None:
    run_all(tmp_path, seed=1, rounds=2000)


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    run_all(tmp_path, seed=100, rounds=20000)

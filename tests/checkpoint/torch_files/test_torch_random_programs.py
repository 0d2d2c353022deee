"""Random sequences of opcodes: far more of them get deep into the machine than damaged files do."""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

import pytest
import torch
from hostile import name, text

from megacore.checkpoint.torch_files import Limits, encode_pickle
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.checkpoint.torch_files.makers import MAKERS
from megacore.checkpoint.torch_files.names import CONSTANTS
from megacore.checkpoint.torch_files.opcodes import NAMES
from megacore.checkpoint.torch_files.storages import Storage, StoredBytes
from megacore.errors import CheckpointError

ALLOWED = [kind.rpartition(".") for kind in (*MAKERS, *CONSTANTS)]
ALLOWED += [("torch", "", name) for name in ("float32", "bfloat16", "FloatStorage", "strided")]
ALLOWED += [
    ("argparse", "", "Namespace"),
    ("megatron.core.enums", "", "ModelType"),
    ("torch.distributed.checkpoint.metadata", "", "MetadataIndex"),
]

# Opcodes without arguments that take from the stack what they need.
BARE = [
    b"(", b"0", b"1", b"2", b"N", b")", b"]", b"}", b"\x8f", b"a", b"e", b"s", b"u", b"\x90",
    b"\x91", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"R", b"b", b"\x81", b"\x92", b"o",
    b"\x93", b"\x94", b"Q", b"\x88", b"\x89",
]  # fmt: skip

VALUES = [
    0, 1, -1, 255, 1 << 40, -(1 << 70), 0.5, "", "a", "latin1", "i8", "<", "cpu", "torch.strided",
    "numpy", "ndarray", b"", b"abc", b"\x00" * 8, (), (1,), (2, 3), (0, 1), [], {}, [1, 2],
    {"a": 1}, {(1, "b"): [1]}, (3, "<", None, None, None, -1, -1, 0), "MT19937",
]  # fmt: skip


def fragment(rng: random.Random) -> bytes:
    """One step of a program."""
    match rng.randrange(8):
        case 0 | 1 | 2:
            return rng.choice(BARE)
        case 3 | 4:
            return encode_pickle(rng.choice(VALUES))[2:-1]
        case 5:
            module, _, attribute = rng.choice(ALLOWED)
            called = b"(" + b"".join(fragment(rng) for _ in range(rng.randrange(3))) + b"tR"
            return name(module, attribute) + rng.choice([b"", called])
        case 6:
            return rng.choice([b"q", b"h"]) + bytes([rng.randrange(4)])
    return rng.choice([text("x"), b"K\x05", b"I01\n", b"U\x02\xff\x00", struct.pack("<BI", 74, 9)])


def program(rng: random.Random) -> bytes:
    return b"\x80\x02" + b"".join(fragment(rng) for _ in range(rng.randint(1, 25))) + b"."


def persistent(identifier: Any) -> Storage:
    return Storage(StoredBytes(torch.arange(4.0).view(torch.uint8)), torch.float32, 0, 4)


def run(seed: int, rounds: int) -> tuple[int, set[int]]:
    """Number of programs that left a value, and the opcodes that were in them."""
    rng = random.Random(seed)
    survived, opcodes = 0, set()
    modules = set(sys.modules)
    for _ in range(rounds):
        data = program(rng)
        try:
            value, _ = load_pickle(
                data, label="test", persistent=persistent, limits=Limits(objects=5000)
            )
        except CheckpointError:
            continue
        survived += 1
        opcodes.update(data)
        # What comes out can be walked and written again, with tensors where there are any.
        repr(value)
        encode_pickle(value, lambda tensor: "0")
    assert set(sys.modules) == modules
    return survived, opcodes


def test_random_programs() -> None:
    survived, opcodes = run(seed=1, rounds=6000)
    assert survived > 100
    assert len({NAMES[code] for code in opcodes}) > 40


@pytest.mark.slow
def test_many_random_programs() -> None:
    survived, _ = run(seed=100, rounds=100000)
    assert survived > 2000

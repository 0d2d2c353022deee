"""States whose every value follows from a seed, so that a mixture of two is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint import Checkpoint, find_checkpoint


def make_tensors(seed: int, *, size: int = 61) -> dict[str, dict[str, Tensor]]:
    """Groups of awkward shapes and dtypes; all values depend on the seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    flat = normal(size * 9)
    return {
        "model": {
            "weight": normal(size, 7).bfloat16(),
            "bias": normal(3).half(),
            "scalar": normal(),
            "view": flat[size : 3 * size].view(2, size),
            "columns": normal(5, size).t(),
        },
        "optimizer": {
            "exp_avg": normal(size, 7),
            "overlapping": flat[size - 1 : 2 * size],
            "empty": torch.zeros(0, 4),
            "double": normal(2).double(),
        },
        "rng": {"counter": torch.tensor([seed, 7]), "bytes": torch.arange(33, dtype=torch.uint8)},
    }


def make_values(seed: int) -> dict[str, object]:
    """JSON values that depend on the seed."""
    return {"seed": seed, "consumed": 3 * seed, "nested": {"lr": seed / 7, "none": None}}


def differences(checkpoint: Checkpoint, seed: int, *, size: int = 61) -> list[str]:
    """Names of what is not exactly the state of a seed."""
    wrong = [] if checkpoint.values == make_values(seed) else ["values"]
    expected = make_tensors(seed, size=size)
    if set(checkpoint.groups) != set(expected):
        wrong.append(f"groups {checkpoint.groups}")
    for group, tensors in expected.items():
        stored = checkpoint.tensors(group)
        if set(stored) != set(tensors):
            wrong.append(f"names of {group}")
        wrong += [f"{group}: {name}" for name, t in tensors.items() if not same(stored[name], t)]
    return wrong


def same(first: Tensor, second: Tensor) -> bool:
    """Whether dtype, shape and every bit agree."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.contiguous().view(-1).view(torch.uint8), as_bytes(second))
    )


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in row-major order."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def read_seed(directory: Path, *, size: int = 61) -> int | None:
    """Seed of the complete state that a directory holds, None for nothing at all.

    Raises:
        AssertionError: What is there is no complete state.
    """
    path = find_checkpoint(directory)
    if path is None:
        return None
    checkpoint = Checkpoint(path)
    seed = int(checkpoint.values["seed"])
    wrong = differences(checkpoint, seed, size=size)
    if wrong:
        raise AssertionError(f"{path}: a mixture: {wrong}")
    return seed


def all_loaded(path: Path) -> Mapping[str, object]:
    """Everything that a checkpoint holds, read and verified."""
    checkpoint = Checkpoint(path)
    return {"values": checkpoint.values} | {
        group: {name: as_bytes(t).tolist() for name, t in checkpoint.tensors(group).items()}
        for group in checkpoint.groups
    }

"""States whose every value follows from a seed, so that a mixture of two is recognised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint import find_checkpoint
from megacore.checkpoint.content import Content, collect
from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.pieces import Part
from megacore.parallel.layout import ParamLayout

# Divisible by every number of writers up to 4.
_ROWS = 12


def full_state(seed: int, *, scale: int = 1) -> dict[str, dict[str, Tensor]]:
    """Group -> name -> whole tensor.

    Args:
        seed: All values follow from it.
        scale: How large the tensors are.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight, bias = normal(_ROWS, 16 * scale), normal(7)
    return {
        "model": {
            "decoder.layers.0.mlp.linear_fc1.weight": weight.bfloat16(),
            "decoder.layers.1.mlp.linear_fc1.weight": normal(_ROWS, 16 * scale).bfloat16(),
            "decoder.final_layernorm.bias": bias.half(),
            "scalar": normal(),
        },
        "optimizer": {
            "exp_avg.decoder.layers.0.mlp.linear_fc1.weight": normal(_ROWS, 16 * scale),
            "exp_avg.decoder.final_layernorm.bias": normal(7).double(),
            "exp_avg.empty": torch.zeros(0, 4),
        },
        "rng": {"counter": torch.tensor([seed, 7])},
    }


def values_of(seed: int) -> dict[str, object]:
    """Values beside the tensors, of a seed."""
    return {"seed": seed, "counters": {"iteration": seed, "consumed": 3 * seed}, "none": None}


def content_of(
    iteration: int, seed: int, *, rank: int = 0, size: int = 1, scale: int = 1
) -> Content:
    """What one of several writers writes of the state of a seed.

    Weights are cut by rows as tensor parallelism does, optimizer state in ranges of the flattened
    tensor as a sharded optimizer does; everything else goes round.

    Args:
        iteration: Of the checkpoint.
        seed: Of the values.
        rank: Which writer.
        size: Number of writers.
        scale: As in `full_state`.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, list[Part]] = {}
    for number, (group, name, tensor) in enumerate(_all(full_state(seed, scale=scale))):
        if group == "model" and tensor.dim() == 2:
            layout = ParamLayout(
                name=name,
                full_shape=tuple(tensor.shape),
                shard_dim=0,
                num_shards=size,
                shard=rank,
            )
            parts.setdefault(group, []).append(Part(layout, tensor.chunk(size)[rank]))
        elif group == "optimizer" and tensor.numel() >= size:
            layout = ParamLayout(name=name, full_shape=tuple(tensor.shape))
            ends = [tensor.numel() * member // size for member in (rank, rank + 1)]
            piece = tensor.reshape(-1)[ends[0] : ends[1]]
            parts.setdefault(group, []).append(Part(layout, piece, ends[0]))
        elif number % size == rank:
            tensors.setdefault(group, {})[name] = tensor
    return collect(iteration, tensors=tensors, values=values_of(seed), parts=parts)


def _all(state: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    for group, named in state.items():
        for name, tensor in named.items():
            yield group, name, tensor


def differences(checkpoint: Checkpoint, seed: int, *, scale: int = 1) -> list[str]:
    """Names of what is not exactly the state of a seed.

    Args:
        checkpoint: All of it is read.
        seed: Of the values.
        scale: As in `full_state`.
    """
    wrong = [] if checkpoint.values == values_of(seed) else ["values"]
    expected = full_state(seed, scale=scale)
    if set(checkpoint.groups) != set(expected):
        wrong.append(f"groups {checkpoint.groups}")
    for group, tensors in expected.items():
        stored = checkpoint.tensors(group)
        if set(stored) != set(tensors):
            wrong.append(f"names of {group}")
        wrong += [
            f"{group}: {name}"
            for name, tensor in tensors.items()
            if name in stored and not _same(stored[name], tensor)
        ]
    return wrong


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether dtype, shape and every bit agree."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (first, second))
    return torch.equal(a, b)


def stored_seed(directory: Path, *, scale: int = 1) -> int | None:
    """Seed of the complete state that a save directory holds, None for nothing at all.

    Raises:
        CheckpointError: What is there cannot be read.
        AssertionError: What is there is not exactly the state of one seed.
    """
    path = find_checkpoint(directory)
    if path is None:
        return None
    checkpoint = Checkpoint(path)
    seed = checkpoint.values.get("seed")
    wrong = differences(checkpoint, seed, scale=scale) if isinstance(seed, int) else ["seed"]
    if wrong:
        raise AssertionError(f"{path}: a mixture: {wrong}")
    return seed

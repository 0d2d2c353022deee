"""What is written for a rank equals what Megatron-LM's own steps make of the same parameters."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_files import Param, buffers, model_dict, plain_optimizer, rank_params, with_state
from megatron_model import Shape, full_model

from megacore.checkpoint.megatron.buffers import find_offsets, stored_offsets
from megacore.checkpoint.megatron.rank_state import (
    GroupConstants,
    RankParam,
    RankStage,
    distributed_optimizer,
    flat_buffers,
    grouped_optimizer,
    legacy_states,
    model_states,
)
from megacore.checkpoint.megatron.run_values import rng_parts, stored_rng
from megacore.checkpoint.rng import gather_rng

SHAPES = {
    "one file": Shape(),
    "tp2 pp2 virtual2": Shape(tp=2, pp=2, virtual=2),
    "untied": Shape(pp=2, tied=False, hidden=20, channels=5),
    "gated": Shape(gated=True, bias=False, rms=True, rope=True, tied=False, groups=2, tp=2),
}
CONSTANTS = GroupConstants(
    lr=1e-3,
    weight_decay=0.1,
    max_lr=1e-3,
    min_lr=1e-5,
    step=7,
    more={"bias_correction": True, "betas": (0.9, 0.95), "eps": 1e-8},
)
SCALER = {"scale": torch.tensor([4096.0]), "growth_tracker": 3, "hysteresis_tracker": 1}


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def rank(shape: Shape, tensor: int, pipeline: int) -> tuple[list[list[Param]], list[RankStage]]:
    """The stages of a rank as Megatron's, and as ours (in another order of parameters)."""
    mains = full_model(shape, dtype=torch.float32)
    model = {name: value.to(torch.bfloat16) for name, value in mains.items()}
    states = {
        "main_param": mains,
        "exp_avg": full_model(shape, dtype=torch.float32, seed=1),
        "exp_avg_sq": full_model(shape, dtype=torch.float32, seed=2),
    }
    theirs, ours = [], []
    for chunk in range(shape.virtual):
        params = rank_params(model, shape, tensor, pipeline, chunk)
        with_state(params, states, shape, tensor)
        layers = shape.stage_layers()[pipeline][chunk]
        own = [
            RankParam(
                "output_layer.weight" if p.local == "output_layer.weight" else p.canonical,
                p.value,
                p.state,
                is_shared=p.shared,
            )
            for p in params
        ]
        random.Random(chunk).shuffle(own)
        theirs.append(params)
        ours.append(RankStage.of(layers.start, own))
    return theirs, ours


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ranks_are_written_as_megatron_writes_them(shape: Shape) -> None:
    for pipeline in range(shape.pp):
        for tensor in range(shape.tp):
            theirs, ours = rank(shape, tensor, pipeline)
            for style, states in {
                "te": model_states(ours),
                "local": model_states(ours, fused_norms=False),
                "legacy": legacy_states(ours),
            }.items():
                expected = [model_dict(params, style) for params in theirs]
                keys = ["model"] if shape.virtual == 1 else [f"model{i}" for i in range(len(ours))]
                assert list(states) == keys
                for found, wanted in zip(states.values(), expected, strict=True):
                    without = {k: v for k, v in found.items() if not k.endswith("_extra_state")}
                    recipes = {k: v for k, v in wanted.items() if k.endswith("_extra_state")}
                    assert found.keys() - without.keys() == recipes.keys()
                    assert_equal(without, {k: v for k, v in wanted.items() if k not in recipes})
            plain = plain_optimizer(theirs, half=True, decoupled=False)
            assert_equal(grouped_optimizer(ours, CONSTANTS, SCALER), plain)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dp", "bucket_size"), [(1, None), (2, 500), (3, 1), (8, 3000)])
def test_buffers_are_written_as_megatron_writes_them(
    shape: Shape, dp: int, bucket_size: int | None
) -> None:
    grads = {torch.bfloat16: torch.float32}
    for pipeline in range(shape.pp):
        theirs, ours = rank(shape, 0, pipeline)
        sizes = [bucket_size, *[None] * (shape.virtual - 1)]
        entry, stored = buffers(theirs, dp=dp, bucket_sizes=sizes)
        assert_equal(flat_buffers(ours, grads, shards=dp, bucket_sizes=sizes), stored)
        assert_equal(distributed_optimizer(ours, CONSTANTS, None), entry)


@pytest.mark.parametrize("seed", range(60))
def test_offsets_are_found_again(seed: int) -> None:
    """Parameters that are all zero do not lead astray the search for the others."""
    chance = random.Random(seed)
    numels = [chance.choice((1, 20, 64, 100, 128, 333)) for _ in range(chance.randint(1, 30))]
    alone = [chance.random() < 0.1 for _ in numels]
    shards = chance.choice((1, 2, 3, 8))
    limit = chance.choice((None, 1, 200, 700))
    offsets, total = stored_offsets(numels, alone, shards=shards, bucket_size=limit)
    assert offsets[-1] + numels[-1] == total
    values = torch.zeros(total)
    expected = []
    for index, (offset, numel) in enumerate(zip(offsets, numels, strict=True)):
        empty = chance.random() < 0.2
        expected.append(torch.zeros(numel) if empty else torch.full((numel,), index + 1.0))
        values[offset : offset + numel] = expected[-1]

    def is_here(index: int, offset: int) -> bool:
        return torch.equal(values[offset : offset + numels[index]], expected[index])

    found = find_offsets(numels, total, is_here, shards=shards)
    assert found is not None
    for index, (one, other) in enumerate(zip(found, offsets, strict=True)):
        assert one == other or not expected[index].any()
    assert find_offsets(numels, total + 64, is_here, shards=shards) is None


def test_offsets_of_a_known_buffer() -> None:
    # 100 elements end at 100; the next begins at 128; 50 more make a bucket of 178, which is full.
    # The next bucket begins at 256 (a multiple of 128), stored right behind the 178.
    assert stored_offsets([100, 50, 10], [False] * 3, shards=2, bucket_size=150) == (
        [0, 128, 178],
        188,
    )
    # A shared embedding begins a bucket; the one before it is stored up to a multiple of 64.
    assert stored_offsets([100, 50, 10], [False, True, False], shards=2) == ([0, 128, 178], 188)
    assert stored_offsets([100, 64], [False, True], shards=3) == ([0, 128], 192)


def test_random_states_there_and_back() -> None:
    tensors, values = gather_rng()
    tensors["tensor_parallel.cpu"] = torch.get_rng_state()
    stored = stored_rng(tensors, values)
    assert stored.keys() == {
        "random_rng_state",
        "np_rng_state",
        "torch_rng_state",
        "cuda_rng_state",
        "rng_tracker_states",
    }
    assert list(stored["rng_tracker_states"]) == ["model-parallel-rng-cpu", "model-parallel-rng"]
    again, same = rng_parts(stored, Path("file"))
    assert_equal(again, {k: v for k, v in tensors.items() if not k.startswith("torch_cuda.")})
    assert same == values

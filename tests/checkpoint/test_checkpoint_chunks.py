"""Cutting tensors into rectangles: nothing is lost, nothing is there twice, for random layouts."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from megacore.checkpoint.chunks import (
    Region,
    flat_regions,
    fragment_regions,
    part_regions,
    tiling_fault,
    whole,
)
from megacore.parallel.layout import ParamLayout


def random_shape(chance: random.Random, *, most: int = 4) -> tuple[int, ...]:
    return tuple(chance.choice((1, 2, 3, 4, 6)) for _ in range(chance.randrange(most + 1)))


def random_cuts(chance: random.Random, size: int, count: int) -> list[tuple[int, int]]:
    """Neighbouring ranges (start, length) of 0 ... size, some of them empty."""
    cuts = sorted([0, size, *(chance.randint(0, size) for _ in range(count - 1))])
    return [(a, b - a) for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("seed", range(150))
def test_ranges_become_rectangles(seed: int) -> None:
    chance = random.Random(seed)
    shape = random_shape(chance)
    full = torch.arange(math.prod(shape)).view(shape)
    regions = []
    for start, count in random_cuts(chance, full.numel(), chance.randint(1, 5)):
        flat = full.reshape(-1)[start : start + count]
        pieces = list(flat_regions(shape, start, count))
        assert len(pieces) <= max(1, 2 * len(shape) - 1)
        position = 0
        for first, region in pieces:
            assert first == position
            piece = flat[first : first + region.numel].view(region.sizes)
            assert torch.equal(piece, region.of(full, (0,) * len(shape)))
            position += region.numel
            regions.append(region)
        assert position == count
    assert tiling_fault(shape, regions) is None


def random_layouts(chance: random.Random) -> list[ParamLayout]:
    """All parts of one tensor."""
    shape = list(random_shape(chance, most=3))
    if not shape or chance.random() < 0.2:
        return [ParamLayout(name="t", full_shape=tuple(shape))]
    dim, shards, fold = chance.randrange(len(shape)), chance.choice((1, 2, 3, 4)), 1
    if dim == 0:
        fold = chance.choice((1, 2, 3))
    shape[dim] *= shards * fold
    return [
        ParamLayout(
            name="t",
            full_shape=tuple(shape),
            shard_dim=dim,
            num_shards=shards,
            shard=shard,
            fold=fold,
        )
        for shard in range(shards)
    ]


@pytest.mark.parametrize("seed", range(150))
def test_parts_of_any_layout_tile_and_are_read_by_any_other(seed: int) -> None:
    chance = random.Random(seed)
    layouts = random_layouts(chance)
    shape = layouts[0].full_shape
    full = torch.arange(math.prod(shape)).view(shape)
    stored = []
    for layout in layouts:
        local = layout.local(full).reshape(-1)
        for start, count in random_cuts(chance, local.numel(), chance.randint(1, 4)):
            stored += part_regions(layout, start, local[start : start + count])
    assert tiling_fault(shape, [region for region, _ in stored]) is None
    # Any rectangle of the tensor, from the stored ones.
    sizes = tuple(chance.randint(1, size) for size in shape)
    offsets = tuple(chance.randint(0, a - b) for a, b in zip(shape, sizes, strict=True))
    wanted = Region(offsets, sizes)
    target = torch.full(sizes, -1)
    for region, view in stored:
        common = wanted.overlap(region)
        if common is not None:
            common.of(target, wanted.offsets).copy_(common.of(view, region.offsets))
    assert torch.equal(target, wanted.of(full, (0,) * len(shape)))


@pytest.mark.parametrize("seed", range(60))
def test_a_missing_or_doubled_chunk_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    shape = (4, 6, 3)
    regions = [
        region
        for start, count in random_cuts(chance, math.prod(shape), 5)
        for _, region in flat_regions(shape, start, count)
    ]
    victim = chance.randrange(len(regions))
    less = [region for i, region in enumerate(regions) if i != victim]
    assert "elements are there" in str(tiling_fault(shape, less))
    assert "overlap" in str(tiling_fault(shape, [*regions, regions[victim]]))
    moved = Region((4, *regions[victim].offsets[1:]), regions[victim].sizes)
    assert "not inside" in str(tiling_fault(shape, [*less, moved]))


def test_scalars_and_empty_tensors_tile() -> None:
    assert tiling_fault((), [whole(())]) is None
    assert tiling_fault((), []) == "only 0 of its 1 elements are there"
    assert tiling_fault((), [whole(()), whole(())]) == "it is there twice"
    assert tiling_fault((0, 4), [whole((0, 4))]) is None
    assert tiling_fault((2, 4), [Region((0,), (2,))]) is not None
    layout = ParamLayout(name="t", full_shape=(0, 4))
    assert [r for r, _ in part_regions(layout, 0, torch.zeros(0))] == [whole((0, 4))]


@pytest.mark.parametrize("seed", range(60))
def test_flattened_fragments_become_rectangles(seed: int) -> None:
    """Stored as Megatron-Core stores the shards of its distributed optimizer."""
    chance = random.Random(seed)
    fragment = tuple(chance.randint(1, 4) for _ in range(chance.randint(1, 3)))
    grid = tuple(chance.randint(1, 3) for _ in fragment)
    shape = tuple(a * b for a, b in zip(grid, fragment, strict=True))
    full = torch.arange(math.prod(shape)).view(shape)
    regions = []
    for number in range(math.prod(grid)):
        index, rest = [], number
        for extent in reversed(grid):
            index.insert(0, rest % extent)
            rest //= extent
        origin = tuple(i * size for i, size in zip(index, fragment, strict=True))
        flat = Region(origin, fragment).of(full, (0,) * len(shape)).reshape(-1)
        for start, count in random_cuts(chance, flat.numel(), 3):
            if not count:
                continue
            chunk = Region((*index, start), (1,) * len(grid) + (count,))
            for first, region in fragment_regions(shape, grid, chunk):
                data = flat[start + first : start + first + region.numel].view(region.sizes)
                assert torch.equal(data, region.of(full, (0,) * len(shape)))
                regions.append(region)
    assert tiling_fault(shape, regions) is None


@pytest.mark.parametrize(
    ("grid", "chunk"),
    [
        ((3, 1), Region((0, 0, 0), (1, 1, 4))),
        ((2,), Region((0, 0), (1, 4))),
        ((0, 1), Region((0, 0, 0), (1, 1, 4))),
        ((2, 1), Region((0, 0, 0), (2, 1, 4))),
        ((2, 1), Region((2, 0, 0), (1, 1, 4))),
        ((2, 1), Region((0, 0, 10), (1, 1, 4))),
    ],
)
def test_impossible_fragments_are_refused(grid: tuple[int, ...], chunk: Region) -> None:
    with pytest.raises(ValueError, match=r"do not divide|not a part"):
        list(fragment_regions((4, 6), grid, chunk))

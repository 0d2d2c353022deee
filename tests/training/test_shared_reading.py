"""Every tensor is read by exactly one of those that need it, and the work is shared evenly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacore.parallel.groups import Group
from megacore.training.shared_reading import SharedReading, owners

SIZES = [1, 700, 3, 0, 64, 64, 1000, 5]


@pytest.mark.parametrize("size", [1, 2, 3, 11])
def test_each_is_read_once(size: int) -> None:
    tensors = [torch.zeros(n) for n in SIZES]
    group = Group("dp", tuple(range(size)), 0)
    reads = [SharedReading(tensors, replace(group, rank=rank)).reads for rank in range(size)]
    assert sorted(i for own in reads for i in own) == list(range(len(SIZES)))


def test_shares_differ_by_no_more_than_the_largest() -> None:
    dealt = owners(SIZES, Group("dp", (0, 1, 2)))
    loads = [sum(n for n, owner in zip(SIZES, dealt, strict=True) if owner == m) for m in range(3)]
    assert max(loads) - min(loads) <= max(SIZES)
    assert set(owners(SIZES, Group("dp", (0, 1, 2)), spread=False)) == {0}


def test_alone_everything_is_read_and_nothing_handed_round() -> None:
    tensors = [torch.full((3,), 2.0), torch.ones(4, 2).t()]
    shared = SharedReading(tensors, Group("dp"))
    assert shared.reads == {0, 1}
    shared.hand_round()
    assert torch.equal(tensors[0], torch.full((3,), 2.0))

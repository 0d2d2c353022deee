from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.data.samplers import Sharding, cyclic, sequential
from megacore.errors import DataError


def deal(rank, size, micro):
    return Sharding(micro_batch_size=micro, rank=rank, size=size)


def take_cyclic(total, consumed, sharding, own_bucket, count):
    batches = cyclic(
        total, consumed=consumed, sharding=sharding, own_bucket=own_bucket, name="data"
    )
    return [batch.tolist() for batch in islice(batches, count)]


@settings(deadline=None)
@given(
    total=st.integers(0, 100),
    consumed=st.integers(0, 50),
    micro=st.integers(1, 5),
    ranks=st.integers(1, 4),
)
def test_sequential_ranks_share_each_block_in_order(total, consumed, micro, ranks):
    block = micro * ranks
    expected = [
        list(range(start, start + block))
        for start in range(consumed, total, block)
        if start + block <= total
    ]
    per_rank = [
        list(sequential(total, consumed=consumed, sharding=deal(r, ranks, micro)))
        for r in range(ranks)
    ]
    found = [
        [i for batch in parts for i in batch.tolist()] for parts in zip(*per_rank, strict=True)
    ]
    assert found == expected


@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 60),
    micro=st.integers(1, 4),
    ranks=st.integers(1, 4),
    own_bucket=st.booleans(),
    skipped=st.integers(0, 40),
)
def test_cyclic_epochs_use_every_sample_once_and_resume_anywhere(
    total, micro, ranks, own_bucket, skipped
):
    block = micro * ranks
    if total < block:
        with pytest.raises(DataError, match="less than one micro-batch on every rank"):
            take_cyclic(total, 0, deal(0, ranks, micro), own_bucket, 1)
        return
    blocks = total // block
    for epoch in range(2):
        used = []
        for rank in range(ranks):
            start = epoch * blocks * block
            batches = take_cyclic(total, start, deal(rank, ranks, micro), own_bucket, blocks)
            assert all(len(batch) == micro for batch in batches)
            used += [i for batch in batches for i in batch]
        assert len(used) == len(set(used)) == blocks * block
        assert all(0 <= i < total for i in used)
    for rank in range(ranks):
        straight = take_cyclic(total, 0, deal(rank, ranks, micro), own_bucket, skipped + 2 * blocks)
        resumed = take_cyclic(
            total, skipped * block, deal(rank, ranks, micro), own_bucket, 2 * blocks
        )
        assert straight[skipped:] == resumed


def order(count, epoch):
    generator = torch.Generator()
    generator.manual_seed(epoch)
    return torch.randperm(count, generator=generator).tolist()


def test_cyclic_orders_are_those_of_the_format():
    # 23 samples, 2 ranks of 3: 18 are active; buckets of 9 per rank.
    for epoch in (0, 3):
        for rank in (0, 1):
            expected = [rank * 9 + i for i in order(9, epoch)][3:]
            found = take_cyclic(23, epoch * 18 + 6, deal(rank, 2, 3), True, 2)
            assert [i for batch in found for i in batch] == expected
            shared = order(21, epoch)[6:18][rank::2]
            found = take_cyclic(23, epoch * 18 + 6, deal(rank, 2, 3), False, 2)
            assert [i for batch in found for i in batch] == shared


def test_epochs_differ():
    batches = take_cyclic(40, 0, deal(0, 1, 4), True, 20)
    assert batches[:10] != batches[10:]


def test_resume_with_other_batch_sizes_is_refused():
    with pytest.raises(DataError, match=r"sample 5: expected a multiple of 4"):
        take_cyclic(40, 5, deal(0, 2, 2), True, 1)

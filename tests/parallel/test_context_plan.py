"""Cutting sequences, and the blocks of the ring, against the causal mask written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacore.data.loader import Batch
from megacore.errors import UsageError
from megacore.parallel.context import local_batch
from megacore.parallel.context_plan import local_part, parts_of_all, ring_plan, whole_sequence
from megacore.parallel.groups import Group


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, ...] | None]:
    """Ranks, sequences, tokens of a sequence, and documents that stay inside sequences."""
    size, batch_size = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    length = 2 * size * draw(st.integers(1, 4))
    if draw(st.booleans()):
        return size, batch_size, length, None
    documents: list[int] = []
    for _ in range(batch_size):
        inner = draw(st.lists(st.integers(0, length), max_size=6))
        ends = [0, *sorted(inner), length]
        documents += [b - a for a, b in itertools.pairwise(ends)]
    return size, batch_size, length, tuple(documents)


@given(layouts())
def test_every_visible_pair_once(layout: tuple[int, int, int, tuple[int, ...] | None]) -> None:
    size, batch_size, length, documents = layout
    numbers = torch.arange(batch_size * length).view(batch_size, length)
    parts = [local_part(numbers, rank=rank, size=size) for rank in range(size)]
    seen = torch.zeros(batch_size * length, batch_size * length, dtype=torch.int64)
    for rank in range(size):
        plan = ring_plan(
            batch_size=batch_size,
            length=length // size,
            rank=rank,
            size=size,
            document_lengths=documents,
        )
        assert len(plan) == size
        for step, tasks in enumerate(plan):
            for task in tasks:
                queries = parts[rank][task.rows, task.queries]
                keys = parts[(rank - step) % size][task.rows, task.keys]
                for row_queries, row_keys in zip(queries, keys, strict=True):
                    block = torch.ones(len(row_queries), len(row_keys), dtype=torch.int64)
                    if task.causal:
                        assert torch.equal(row_queries, row_keys)
                        block = block.tril()
                    seen[row_queries[:, None], row_keys[None]] += block
    lengths = documents or (length,) * batch_size
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (document[:, None] == document[None]).long().tril()
    assert torch.equal(seen, visible)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_work_is_balanced(size: int) -> None:
    """At every step every rank multiplies as many queries with as many keys."""
    for step in range(1, size):
        areas = set()
        for rank in range(size):
            plan = ring_plan(batch_size=1, length=10, rank=rank, size=size)
            (task,) = plan[step]
            queries, keys = range(10)[task.queries], range(10)[task.keys]
            areas.add(len(queries) * len(keys))
        assert areas == {50}


def test_chunks() -> None:
    x = torch.arange(12)[None]
    parts = [local_part(x, rank=rank, size=3)[0].tolist() for rank in range(3)]
    assert parts == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]


def test_whole_sequence_is_the_inverse() -> None:
    x = torch.arange(2 * 24 * 5).view(2, 24, 5)
    for size in (1, 2, 3, 4):
        parts = torch.stack([local_part(x, rank=rank, size=size) for rank in range(size)])
        assert torch.equal(whole_sequence(parts), x)
        assert torch.equal(parts_of_all(x, size), parts)


def test_local_batch() -> None:
    bounds = torch.tensor([0, 3, 8, 16], dtype=torch.int32)
    numbers = torch.arange(16).view(2, 8)
    batch = Batch(numbers, numbers + 1, numbers * 0.5, numbers % 8, bounds, 8)
    local = local_batch(batch, Group("cp", (0, 1), 1))
    assert local.tokens.tolist() == [[2, 3, 4, 5], [10, 11, 12, 13]]
    assert local.labels.tolist() == [[3, 4, 5, 6], [11, 12, 13, 14]]
    assert local.loss_mask.tolist() == [[1.0, 1.5, 2.0, 2.5], [5.0, 5.5, 6.0, 6.5]]
    assert local.position_ids.tolist() == [[2, 3, 4, 5]] * 2
    assert local.cu_seqlens is bounds
    assert local.max_seqlen == 8
    assert local_batch(batch, Group("cp")) is batch


def test_bad_lengths_are_reported() -> None:
    with pytest.raises(UsageError, match="10 tokens cannot be cut into the 4 chunks"):
        local_part(torch.zeros(1, 10), rank=0, size=2)
    with pytest.raises(UsageError, match="from 0 to the 16 tokens"):
        ring_plan(batch_size=2, length=4, rank=0, size=2, document_lengths=(8, 7))
    with pytest.raises(UsageError, match="tokens 3 to 9 of the batch reaches beyond"):
        ring_plan(batch_size=2, length=4, rank=0, size=2, document_lengths=(3, 6, 7))

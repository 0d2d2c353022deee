"""Ring attention with dropout against attention with the same masks in one process."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from worker_pool import WorkerPools

from megacore.parallel.context_plan import local_part, ring_plan, whole_sequence
from megacore.parallel.context_ring import Ring, ring_attention
from megacore.parallel.groups import Group
from megacore.testing.tolerance import expect_close

BATCH, LENGTH, GROUPS, RATIO, WIDTH = 2, 24, 2, 3, 24
DOCUMENTS = (9, 1, 14, 24)
DROP = 0.25


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    queries = torch.randn(
        2, BATCH, LENGTH, GROUPS, RATIO, WIDTH, generator=generator, dtype=torch.float64
    )
    keys = torch.randn(2, BATCH, LENGTH, GROUPS, WIDTH, generator=generator, dtype=torch.float64)
    return queries[0], keys[0], keys[1], queries[1]


def attend(group: Group, packed: bool) -> tuple[Tensor, ...]:
    """Local weights after dropout, output and gradients."""
    plan = ring_plan(
        batch_size=BATCH,
        length=LENGTH // group.size,
        rank=group.rank,
        size=group.size,
        document_lengths=DOCUMENTS if packed else None,
    )
    ring = Ring(group=group, plan=plan, drop=DROP, seed=3)
    q, k, v, grad = (local_part(x, rank=group.rank, size=group.size) for x in inputs())
    # The values of one-hot rows are the weights themselves.
    one_hot = torch.eye(LENGTH, dtype=torch.float64)[None, :, None].expand(BATCH, -1, GROUPS, -1)
    weights = ring_attention(q, k, local_part(one_hot, rank=group.rank, size=group.size), ring)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = ring_attention(*leaves, ring)
    out.backward(grad)
    return weights, out.detach(), *(x.grad for x in leaves if x.grad is not None)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_masks_are_the_same_in_backward(world: WorkerPools, size: int, packed: bool) -> None:
    results = world(size).run(attend, packed)
    weights, out, *gradients = (
        whole_sequence(torch.stack(parts)) for parts in zip(*results, strict=True)
    )
    q, k, v, grad = inputs()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, -1, -1)
    if packed:
        document = torch.repeat_interleave(torch.tensor(DOCUMENTS)).view(BATCH, LENGTH)
        visible = visible & (document[:, :, None] == document[:, None])
    scores = torch.einsum("bqgrd,bkgd->bqgrk", q, k) / math.sqrt(WIDTH)
    probabilities = scores.masked_fill(~visible[:, :, None, None], float("-inf")).softmax(-1)
    kept = (weights > 0).double()
    seen = visible[:, :, None, None].expand_as(kept)
    assert kept[~seen].max() == 0
    share = kept[seen].mean().item()
    assert abs(share - (1 - DROP)) < 5 * math.sqrt(DROP * (1 - DROP) / seen.sum().item())
    expect_close(weights, probabilities * kept / (1 - DROP), bound=1e-12, name="weights")
    # Blocks of different ranks have different masks.
    chunk = LENGTH // (2 * size)
    if not packed:
        corners = [kept[:, i : i + chunk, :, :, :chunk] for i in range(chunk, LENGTH, chunk)]
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(corners))

    wanted = torch.einsum("bqgrk,bkgd->bqgrd", probabilities * kept / (1 - DROP), v)
    wanted.backward(grad)
    expect_close(out, wanted, bound=1e-12, name="out")
    for name, x, leaf in zip("qkv", gradients, leaves, strict=True):
        assert leaf.grad is not None
        expect_close(x, leaf.grad, bound=1e-12, name=f"d_{name}")

"""The process grid against numpy: reshape the ranks, move the axes to the end, flatten."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore._C import comm

DENSE, EXPERT = ("tp", "cp", "dp", "pp"), ("etp", "ep", "edp", "pp")


def reference(degrees: dict[str, int], order: list[str], axes: list[str]) -> list[list[int]]:
    world = math.prod(degrees[axis] for axis in order)
    ranks = np.arange(world).reshape([degrees[axis] for axis in reversed(order)])
    dims = [len(order) - 1 - order.index(axis) for axis in axes]
    rest = [dim for dim in range(len(order)) if dim not in dims]
    moved = ranks.transpose(*rest, *sorted(dims))
    return moved.reshape(-1, math.prod(degrees[axis] for axis in axes)).tolist()


@st.composite
def grids(draw: st.DrawFn) -> tuple[dict[str, int], list[str]]:
    """Degrees of both views and an order in which they fit together."""
    small = st.sampled_from([1, 1, 2, 3, 4, 8])
    etp, ep, edp = draw(small), draw(small), draw(st.sampled_from([1, 2, 3, 6, 16]))
    pp = draw(st.sampled_from([1, 2, 5, 16, 64]))
    stage = etp * ep * edp
    tp = draw(st.sampled_from([d for d in range(1, stage + 1) if stage % d == 0]))
    cp = draw(st.sampled_from([d for d in range(1, stage // tp + 1) if stage // tp % d == 0]))
    inner = draw(st.permutations(["tp", "cp", "ep", "dp"]))
    order = [*inner, "pp"] if draw(st.booleans()) else ["pp", *inner]
    degrees = {"tp": tp, "cp": cp, "dp": stage // tp // cp, "pp": pp}
    return {**degrees, "etp": etp, "ep": ep, "edp": edp}, order


def build(degrees: dict[str, int], order: list[str]) -> comm.ProcessGrid:
    return comm.ProcessGrid(
        math.prod(degrees[axis] for axis in DENSE),
        tensor=degrees["tp"],
        context=degrees["cp"],
        pipeline=degrees["pp"],
        expert=degrees["ep"],
        expert_tensor=degrees["etp"],
        order="-".join(order),
    )


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_groups_are_those_of_numpy(case: tuple[dict[str, int], list[str]], data: st.DataObject):
    degrees, order = case
    grid = build(degrees, order)
    assert grid.world_size <= 6144 * 64
    for view in (DENSE, EXPERT):
        names = dict(
            zip(
                ("tp", "cp", "dp", "pp") if view is DENSE else ("tp", "ep", "dp", "pp"),
                view,
                strict=True,
            )
        )
        view_order = [names[axis] for axis in order if axis in names]
        axes = data.draw(st.lists(st.sampled_from(view), min_size=1, unique=True))
        wanted = reference(degrees, view_order, axes)
        groups = grid.groups("-".join(axes))
        assert sorted(groups) == sorted(wanted)
        assert [group[0] for group in groups] == sorted(group[0] for group in groups)
        rank = data.draw(st.integers(0, grid.world_size - 1))
        (own,) = [group for group in wanted if rank in group]
        assert grid.group("-".join(axes), rank) == own
        for axis in view:
            alone = grid.group(axis, rank)
            assert len(alone) == grid.degree(axis) == degrees[axis]
            assert alone.index(rank) == grid.coordinate(axis, rank)


def test_axes_cross_in_every_rank_of_the_largest_job() -> None:
    grid = comm.ProcessGrid(16384, tensor=8, context=2, pipeline=64)
    coordinates = {
        tuple(grid.coordinate(axis, rank) for axis in DENSE) for rank in range(grid.world_size)
    }
    assert coordinates == set(itertools.product(range(8), range(2), range(16), range(64)))
    for axes in ("tp", "dp-cp", "tp-pp", "pp"):
        seen = sorted(itertools.chain.from_iterable(grid.groups(axes)))
        assert seen == list(range(16384))


def test_experts_on_any_order_when_there_are_none() -> None:
    for order in itertools.permutations(["tp", "cp", "dp", "pp"]):
        grid = comm.ProcessGrid(24, tensor=2, context=2, pipeline=3, order="-".join(order))
        assert grid.group("ep", 5) == [5]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tensor": 3}, "a world of 8 is no multiple of tensor 3"),
        ({"tensor": 2, "pipeline": 3}, "no multiple of tensor 2 [*] context 1 [*] pipeline 3"),
        ({"expert": 3}, "no multiple of pipeline 1 [*] expert 3"),
        ({"order": "tp-pp"}, "order tp-pp: dp is missing"),
        ({"order": "pp-pp-dp"}, "pp occurs twice"),
    ],
)
def test_errors_name_what_does_not_fit(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comm.ProcessGrid(8, **kwargs)


@pytest.mark.parametrize(
    ("places", "rank", "expected"),
    [([0, 3], 0, [0, 6]), ([0, 3], 7, [1, 7]), ([0, 3], 2, [2]), ([0, 0], 1, [1])],
)
def test_ranks_that_hold_the_embedding(places: list, rank: int, expected: list) -> None:
    grid = comm.ProcessGrid(8, tensor=2, pipeline=4)
    assert grid.pipeline_group(places, rank) == expected

"""Schedules from Python, and against the lists that torch.distributed.pipelining makes."""

from __future__ import annotations

import pytest

from megacore import _C

pipeline = _C.pipeline


def texts(schedule) -> list[list[str]]:
    return [[str(step) for step in steps] for steps in schedule.ranks]


def torch_lists(class_name: str, num_ranks: int, num_microbatches: int, **attributes):
    """Compute steps of a schedule of torch, whose constructor would want stages and processes."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    made = object.__new__(getattr(schedules, class_name))
    known = {"pp_group_size": num_ranks, "_n_microbatches": num_microbatches, **attributes}
    for name, value in known.items():
        setattr(made, name, value)
    return [
        [str(step) for step in made._calculate_single_rank_operations(rank) if step is not None]
        for rank in range(num_ranks)
    ]


# Ranks, groups of microbatches, size of a group: torch takes only groups of equal size.
GROUPS = [
    (ranks, groups, ranks + extra)
    for ranks in (2, 3, 4, 7)
    for groups in (1, 2, 5)
    for extra in (0, 1)
    if groups * extra < ranks
]


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize(("num_ranks", "groups", "size"), GROUPS)
def test_interleaved_is_that_of_torch(num_ranks, groups, size, chunks):
    schedule = pipeline.make_schedule(
        "interleaved", num_ranks=num_ranks, num_microbatches=groups * size, num_chunks=chunks
    )
    assert texts(schedule) == torch_lists(
        "ScheduleInterleaved1F1B",
        num_ranks,
        groups * size,
        n_local_stages=chunks,
        number_of_rounds=groups,
        microbatches_per_round=size,
    )


def split(steps: list[str]) -> list[str]:
    """Steps of an OVERLAP_F_B cell in their order."""
    return [
        part for step in steps for part in step.removesuffix("OVERLAP_F_B").strip("()").split(";")
    ]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("extra", [0, 1, 6])
def test_dualpipev_is_that_of_torch(num_ranks, extra):
    num_microbatches = 2 * num_ranks + extra
    schedule = pipeline.make_schedule(
        "dualpipev", num_ranks=num_ranks, num_microbatches=num_microbatches
    )
    theirs = torch_lists("ScheduleDualPipeV", num_ranks, num_microbatches, num_stages=2 * num_ranks)
    assert texts(schedule) == [split(steps) for steps in theirs]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_microbatches", [1, 4, 15, 21])
def test_zb_v_has_the_order_of_torch(num_ranks, num_microbatches):
    """F and I; weight gradients are placed by costs here and by a pattern there."""
    schedule = pipeline.make_schedule(
        "zb-v", num_ranks=num_ranks, num_microbatches=num_microbatches
    )
    theirs = torch_lists(
        "ScheduleZBVZeroBubble", num_ranks, num_microbatches, num_stages=2 * num_ranks
    )
    for ours, steps in zip(texts(schedule), theirs, strict=True):
        assert [s for s in ours if "W" not in s] == [s for s in steps if "W" not in s]
        assert sorted(ours) == sorted(steps)


@pytest.mark.parametrize("name", pipeline.schedule_names())
def test_connected_schedules_are_valid(name):
    schedule = pipeline.make_schedule(name, num_ranks=4, num_microbatches=7)
    peaks = pipeline.validate(schedule)
    connected = pipeline.add_communication(schedule, prefetch=2)
    assert pipeline.validate(connected, max_live=peaks) == peaks
    assert pipeline.validate(connected, activation_size=[0.5]) == [0.5 * peak for peak in peaks]
    for rank, steps in enumerate(connected.ranks):
        assert {step.stage for step in steps} == set(connected.placement.stages_of(rank))


def test_schedules_are_made_of_plain_values():
    kind = pipeline.Kind
    step = pipeline.Action(3, kind.INPUT_GRAD, 12)
    assert str(step) == repr(step) == "3I12"
    assert (step.stage, step.kind, step.number) == (3, kind.INPUT_GRAD, 12)
    assert step == pipeline.Action.parse("3I12") != pipeline.Action.parse("3W12")
    assert len({step, pipeline.Action.parse("3I12")}) == 1
    placement = pipeline.Placement(2, [[0, 1]], [(0, 1)])
    ranks = [[pipeline.Action.parse(text) for text in row] for row in (["0F0", "0B0"], ["1F0"])]
    schedule = pipeline.Schedule("mine", placement, ranks)
    assert schedule.ranks == ranks
    assert repr(schedule) == "Schedule(mine, 2 ranks, 2 stages, 1 microbatches)"
    with pytest.raises(ValueError, match=r"rank 1, step 1 \(the end\): 1B0 is missing\nstep "):
        pipeline.validate(schedule)


def test_refusals_are_value_errors():
    with pytest.raises(ValueError, match="expected an even number of ranks, found 3"):
        pipeline.make_schedule("dualpipe", num_ranks=3, num_microbatches=8)
    with pytest.raises(ValueError, match="'0F' is no step"):
        pipeline.Action.parse("0F")
    with pytest.raises(ValueError, match="there is no stage 9"):
        pipeline.v_placement(2, 4).rank_of(9)

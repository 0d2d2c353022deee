"""Every layout trains the model that one process trains: loss, gradients and weights."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from layout_checks import Run, expect_equal, joined, relative
from layout_runs import step_here
from layout_table import HEADS, LAYERS, LOSS, MICROBATCHES, MODEL, Layout, covering, sample
from worker_pool import WorkerPools

STEPS = 5
RUN = (
    f"--num-layers {LAYERS} --num-attention-heads {HEADS} --micro-batch-size 2 "
    f"--global-batch-size {2 * MICROBATCHES} --train-iters {STEPS} --lr-decay-iters {STEPS}"
)
# Each value of each axis twice; the rest, on up to 8 processes, is for `make test-all`.
FEW = covering([*sample(2, 200), *sample(4, 600)], strength=1, times=2)


@functools.cache
def many() -> tuple[Layout, ...]:
    """A set in which nearly every pair of values occurs, and each value on 8 processes too."""
    pairs = covering([*sample(2, 400), *sample(4, 1500)], strength=2)
    return (*pairs, *covering(sample(8, 600), strength=1, times=2))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "many_layout" in metafunc.fixturenames:
        metafunc.parametrize("many_layout", many(), ids=str)


@functools.cache
def single(model: str, loss: str, dtype: str) -> Run:
    return joined([step_here(None, f"{RUN} {MODEL[model]} {LOSS[loss]}", dtype)])


def run(world: WorkerPools, layout: Layout, dtype: str) -> Run:
    flags = f"{RUN} {layout.run_flags} {layout.flags}"
    return joined(world(layout.size).run(step_here, flags, dtype, timeout=300.0))


def check(world: WorkerPools, layout: Layout) -> None:
    expected = single(layout.model, layout.loss, "float64")
    expect_equal(run(world, layout, "float64"), expected, bound=1e-10)


@pytest.mark.parametrize("layout", FEW, ids=str)
def test_layout_equals_one_process(world: WorkerPools, layout: Layout) -> None:
    check(world, layout)


@pytest.mark.all_layouts
def test_every_layout_equals_one_process(world: WorkerPools, many_layout: Layout) -> None:
    check(world, many_layout)


def distance(found: Run, expected: Run) -> float:
    """RMS over all weights and moments of the relative distance."""
    errors = relative(found.state, expected.state)
    return float(torch.tensor(list(errors.values())).square().mean().sqrt())


def check_bf16(world: WorkerPools, layout: Layout) -> None:
    exact = single(layout.model, layout.loss, "float64")
    rounded = single(layout.model, layout.loss, "bfloat16")
    first, again = (run(world, layout, "bfloat16") for _ in range(2))
    # Twice the error that one process makes by rounding.
    assert distance(first, exact) <= 2.0 * distance(rounded, exact)
    for one, other in zip(first.losses, rounded.losses, strict=True):
        assert abs(one - other) <= 2.0**-8 * abs(other)
    assert (first.losses, first.norms) == (again.losses, again.norms)
    for name, tensor in first.state.items():
        assert torch.equal(tensor, again.state[name]), name


@pytest.mark.parametrize("layout", FEW[::3], ids=str)
def test_layout_in_bf16_is_as_near_and_repeats_itself(world: WorkerPools, layout: Layout) -> None:
    check_bf16(world, layout)


@pytest.mark.all_layouts
def test_every_layout_in_bf16(world: WorkerPools, many_layout: Layout) -> None:
    check_bf16(world, many_layout)


def test_the_small_set_has_every_value() -> None:
    values = {pair for layout in FEW for pair in vars(layout).items()}
    everything = {pair for layout in sample(4, 600) for pair in vars(layout).items()}
    assert everything <= values
    assert len(set(itertools.chain(FEW))) == len(FEW)

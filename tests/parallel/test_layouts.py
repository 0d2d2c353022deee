"""Every layout trains the model that one process trains: loss, gradients and weights."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from layout_runs import Stepped, full_state, step_here
from layout_table import HEADS, LAYERS, LOSS, MICROBATCHES, MODEL, Layout, covering, sample
from torch import Tensor
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


@dataclass(frozen=True)
class Run:
    """What a run gave, put together from its processes.

    Attributes:
        losses: Of each step.
        norms: Of the gradient of each step.
        state: Weights and moments by name; the moments hold the gradients of all steps.
    """

    losses: list[float]
    norms: list[float]
    state: dict[str, Tensor]


def joined(results: list[Stepped]) -> Run:
    for one in results:
        assert one.losses == results[0].losses
        assert one.norms == results[0].norms
    return Run(results[0].losses, results[0].norms, full_state(results))


@functools.cache
def single(model: str, loss: str, dtype: str) -> Run:
    return joined([step_here(None, f"{RUN} {MODEL[model]} {LOSS[loss]}", dtype)])


def run(world: WorkerPools, layout: Layout, dtype: str) -> Run:
    flags = f"{RUN} {layout.run_flags} {layout.flags}"
    return joined(world(layout.size).run(step_here, flags, dtype, timeout=300.0))


def floors(state: dict[str, Tensor]) -> dict[str, float]:
    """Norm below which a tensor counts as rounding noise, by name.

    A bias of keys shifts all scores of a query alike, so its gradient is zero but for rounding, and
    the optimizer blows that up: such a tensor is compared with what its kind has on average.
    """
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        kinds.setdefault(kind_of(name), []).append(tensor.double().reshape(-1))
    rms = {kind: float(torch.cat(all_).square().mean().sqrt()) for kind, all_ in kinds.items()}
    return {n: 1e-2 * rms[kind_of(n)] * t.numel() ** 0.5 for n, t in state.items()}


def kind_of(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in ("exp_avg", "exp_avg_sq", "main_param") else "weight"


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Distance of each tensor, relative to the expected one."""
    floor = floors(expected)
    return {
        name: float((found[name].double() - tensor.double()).norm())
        / max(float(tensor.double().norm()), floor[name])
        for name, tensor in expected.items()
    }


def expect_equal(found: Run, expected: Run, *, bound: float) -> None:
    pairs = [
        *zip(found.losses, expected.losses, strict=True),
        *zip(found.norms, expected.norms, strict=True),
    ]
    assert len(pairs) == 2 * STEPS
    for one, other in pairs:
        assert abs(one - other) <= bound * abs(other)
    assert found.state.keys() == expected.state.keys()
    errors = relative(found.state, expected.state)
    assert {name: error for name, error in errors.items() if not error < bound} == {}


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

"""Comparing what runs in different layouts left behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from layout_runs import Stepped, full_state
from torch import Tensor


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
    assert len(pairs) > 0
    for one, other in pairs:
        assert abs(one - other) <= bound * abs(other)
    assert found.state.keys() == expected.state.keys()
    errors = relative(found.state, expected.state)
    assert {name: error for name, error in errors.items() if not error < bound} == {}

"""The search for the best layouts of a run on a cluster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from megacore._C import planner as core
from megacore.errors import UsageError
from megacore.planning.estimates import StepEstimate, from_core
from megacore.planning.hardware import HardwareProfile
from megacore.planning.layouts import RECOMPUTES, SHARDINGS, Constraints, Layout
from megacore.planning.model_shape import PlanModel

# Field of Layout -> of the core's search space.
_AXES = {
    "tp": "tensor",
    "pp": "pipeline",
    "cp": "context",
    "micro_batch": "micro_batch",
    "virtual_stages": "virtual_stages",
    "schedule": "schedules",
    "sequence_parallel": "sequence_parallel",
    "tp_comm_overlap": "tp_comm_overlap",
    "overlap_grad_reduce": "overlap_grad_reduce",
    "overlap_param_gather": "overlap_param_gather",
}
_BREAKDOWN_WORDS = {
    "matmul": "slower products of matrices",
    "attention": "slower attention",
    "memory_bound": "more time in kernels bound by memory",
    "launch": "more kernels",
    "recompute": "recompute",
    "tp_exposed": "tensor-parallel communication",
    "cp_exposed": "context-parallel communication",
    "pp_exposed": "transfers between stages",
    "dp_exposed": "communication between replicas",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "other": "other",
}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Layouts that one reason rules out.

    Attributes:
        reason: In words.
        count: Layouts.
        example: One of them.
    """

    reason: str
    count: int
    example: Layout | None


@dataclass(frozen=True, kw_only=True)
class Loser:
    """The best layout that differs from the best plan in one choice.

    Attributes:
        axis: Field of `Layout`.
        value: What it has there.
        step_s: Seconds of its step.
        why: What takes the time that it loses.
    """

    axis: str
    value: str
    layout: Layout
    step_s: float
    why: str


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What a search found.

    Attributes:
        plans: Best first.
        considered: Layouts.
        legal: Of them, those that could be run.
        fitting: Of these, those that may fit into memory.
        simulated: Of these, those whose schedule had to be simulated.
        seconds: Of the search.
        rejected: Why the others were ruled out, most frequent first.
        losers: For each value of each axis that the best plan does not have, the best that does.
        is_proven: The best plans are those that simulating every layout would give.
    """

    plans: tuple[StepEstimate, ...]
    considered: int
    legal: int
    fitting: int
    simulated: int
    seconds: float
    rejected: tuple[Rejection, ...]
    losers: tuple[Loser, ...]
    is_proven: bool


def search(model: PlanModel, profile: HardwareProfile, constraints: Constraints) -> PlanResult:
    """Ranks the layouts that the constraints allow.

    Args:
        model: What is trained.
        profile: The hardware.
        constraints: What may be chosen.

    Raises:
        UsageError: A constraint makes no sense.
    """
    space = _space(model, profile, constraints)
    began = time.perf_counter()
    found = core.search(model.to_core(), profile.to_core(model.dtype), space)
    seconds = time.perf_counter() - began

    def plan(layout: Any, estimate: Any) -> StepEstimate:
        return from_core(
            estimate, Layout.from_core(layout), model, profile, constraints.global_batch
        )

    plans = tuple(plan(layout, estimate) for layout, estimate in found.plans)
    others = [(a.axis, a.value, plan(a.layout, a.estimate)) for a in found.alternatives]
    return PlanResult(
        plans=plans,
        considered=found.considered,
        legal=found.legal,
        fitting=found.fitting,
        simulated=found.simulated,
        seconds=seconds,
        rejected=tuple(
            Rejection(reason=r.reason, count=r.count, example=Layout.from_core(r.example))
            for r in found.rejections
        ),
        losers=_losers(plans[0], others) if plans else (),
        is_proven=not found.cut_short,
    )


def _losers(best: StepEstimate, others: list[tuple[str, str, StepEstimate]]) -> tuple[Loser, ...]:
    losers = []
    for axis, value, other in others:
        chosen = getattr(best.layout, axis)
        chosen = ("off", "on")[chosen] if isinstance(chosen, bool) else str(chosen)
        if value == chosen:
            continue
        losses = {key: other.breakdown[key] - best.breakdown[key] for key in best.breakdown}
        worst = sorted(losses, key=lambda key: losses[key], reverse=True)[:2]
        words = [
            f"{_BREAKDOWN_WORDS[key]} (+{losses[key]:.3g} s)"
            for key in worst
            if losses[key] > 0.1 * abs(other.step_s - best.step_s) and losses[key] > 0
        ]
        losers.append(
            Loser(
                axis=axis,
                value=value,
                layout=other.layout,
                step_s=other.step_s,
                why=", ".join(words) or "nothing in particular",
            )
        )
    return tuple(losers)


def _space(model: PlanModel, profile: HardwareProfile, constraints: Constraints) -> Any:
    unknown = set(constraints.choices) - set(_AXES) - {"sharding", "recompute"}
    if unknown:
        known = ", ".join([*_AXES, "sharding", "recompute"])
        raise UsageError(
            f"nothing can be chosen along {', '.join(sorted(unknown))}; expected {known}"
        )
    gpus, batch = constraints.gpus, constraints.global_batch
    if gpus < 1 or batch < 1:
        raise UsageError(f"expected at least 1 GPU and 1 sequence, found {gpus} and {batch}")
    layers = model.num_layers
    pipelines = [p for p in _divisors(gpus) if p <= layers]
    choices: dict[str, tuple[Any, ...]] = {
        "tp": tuple(t for t in _divisors(gpus) if t <= 2 * profile.gpus_per_node),
        "pp": (1,) if model.decoder_layers else tuple(pipelines),
        "cp": tuple(c for c in _powers_of_two(gpus) if model.seq_length // (2 * c) >= 64),
        "micro_batch": tuple(_powers_of_two(min(batch, 64))),
        "virtual_stages": tuple(v for v in _divisors(layers) if 1 < v <= 16),
        "schedule": tuple(core.planned_schedules()),
        "sequence_parallel": (False, True),
        "tp_comm_overlap": (False, True),
        "overlap_grad_reduce": (True,),
        "overlap_param_gather": (False, True),
        "sharding": SHARDINGS,
        "recompute": RECOMPUTES,
        **constraints.choices,
    }
    space = core.SearchSpace()
    space.gpus, space.global_batch, space.top = gpus, batch, constraints.top
    space.memory_bytes = constraints.memory_bytes or profile.memory_bytes
    for axis, name in _AXES.items():
        setattr(space, name, list(choices[axis]))
    space.sharding = [getattr(core.Sharding, name) for name in choices["sharding"]]
    space.recompute = [getattr(core.Recompute, name) for name in choices["recompute"]]
    return space


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _powers_of_two(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]

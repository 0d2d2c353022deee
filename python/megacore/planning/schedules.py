"""Schedules with their simulation, as the planning commands use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacore._C import pipeline
from megacore.errors import UsageError
from megacore.planning.config import SEARCH, ScheduleConfig, ShareCosts


@dataclass(frozen=True)
class Plan:
    """A schedule and how it runs.

    Attributes:
        schedule: `megacore._C.pipeline.Schedule`.
        costs: Costs of its stages.
        share: What they were derived from.
        simulation: `megacore._C.pipeline.Simulation` at these costs; bytes are in units of the
            activations of one microbatch on a rank's share of the layers.
        origin: Where the schedule came from.
    """

    schedule: Any
    costs: Any
    share: ShareCosts
    simulation: Any
    origin: str

    @property
    def title(self) -> str:
        """Name and size."""
        placement = self.schedule.placement
        return (
            f"{self.schedule.name}: {placement.num_ranks} ranks, {placement.num_stages} stages, "
            f"{placement.num_microbatches} microbatches"
        )

    @property
    def summary(self) -> str:
        """What the simulation says, in one line."""
        run = self.simulation
        peak = max(rank.peak_bytes for rank in run.ranks)
        return (
            f"step {run.makespan_us:.6g} us, idle {run.bubble_fraction:.1%}, "
            f"activations of at most {peak:.4g} microbatches on a rank"
        )


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns refusals of the C++ core into usage errors."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def share_of(costs: ShareCosts) -> Any:
    """The costs of a rank's share for the C++ core; activations are 1 per microbatch."""
    return pipeline.Costs(
        forward_us=costs.forward,
        input_grad_us=costs.input_grad,
        weight_grad_us=costs.weight_grad,
        latency_us=costs.transfer,
    )


def make_plan(config: ScheduleConfig) -> Plan:
    """The schedule that a configuration asks for, checked and simulated.

    Raises:
        UsageError: There is no such schedule, it cannot be made for these numbers, its file is
            wrong, or it cannot run.
    """
    share = config.share_costs()
    with usage_errors():
        if config.file:
            schedule = read_schedule(Path(config.file))
            origin = f"read from {config.file}"
        elif config.name == SEARCH:
            found = pipeline.search(
                num_ranks=config.pipeline_model_parallel_size,
                num_microbatches=config.num_microbatches,
                share=share_of(share),
                memory_limit=config.memory_limit,
            )
            schedule, origin = found.schedule, found.origin
        else:
            schedule = named_schedule(config, config.name or "", share)
            origin = "made by name"
        return simulated(schedule, share, origin, communication=config.communication)


def named_schedule(config: ScheduleConfig, name: str, share: ShareCosts) -> Any:
    """A schedule that megacore makes, for the costs of its stages.

    Raises:
        ValueError: It cannot be made for these numbers.
    """
    sizes = {
        "num_ranks": config.pipeline_model_parallel_size,
        "num_microbatches": config.num_microbatches,
        "num_chunks": config.chunks,
    }
    # The costs of a stage depend on how many there are, which the first attempt tells.
    placement = pipeline.make_schedule(name, **sizes).placement
    costs = pipeline.share_costs(placement, share_of(share))
    return pipeline.make_schedule(name, **sizes, costs=costs)


def simulated(schedule: Any, share: ShareCosts, origin: str, *, communication: bool) -> Plan:
    """Validates and simulates a schedule of compute steps.

    Args:
        schedule: `megacore._C.pipeline.Schedule`; with transfers only if `communication` is off.
        share: Costs of a rank's share.
        origin: Where it came from.
        communication: Whether to add the transfers of the executor.

    Raises:
        ValueError: It cannot run; the message shows where.
    """
    if communication and not has_transfers(schedule):
        schedule = pipeline.add_communication(schedule)
    pipeline.validate(schedule)
    costs = pipeline.share_costs(schedule.placement, share_of(share))
    return Plan(schedule, costs, share, pipeline.simulate(schedule, costs), origin)


def has_transfers(schedule: Any) -> bool:
    """Whether a schedule has SEND or RECV steps."""
    kinds = {
        pipeline.Kind.SEND_FORWARD,
        pipeline.Kind.RECV_FORWARD,
        pipeline.Kind.SEND_BACKWARD,
        pipeline.Kind.RECV_BACKWARD,
    }
    return any(action.kind in kinds for steps in schedule.ranks for action in steps)


def read_schedule(path: Path) -> Any:
    """The schedule in a CSV file.

    Raises:
        UsageError: The file cannot be read.
        ValueError: It is no schedule; the message names row and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return pipeline.parse_csv(text, str(path))

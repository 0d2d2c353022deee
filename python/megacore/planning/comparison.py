"""All schedules at the same numbers, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megacore._C import pipeline
from megacore.planning.config import ScheduleConfig
from megacore.planning.schedules import named_schedule, share_of, simulated

# A search of more steps than this takes minutes; it has to be asked for by --memory-limit.
MAX_SEARCHED_STEPS = 50_000


@dataclass(frozen=True)
class Entry:
    """One schedule of a comparison.

    Attributes:
        name: Its name.
        makespan_us: Time of a step that ends with a wait for all ranks.
        span_us: Time of a step among others that follow without such a wait.
        bubble: Share of idle time in the makespan.
        peak: Most microbatches whose activations of one share a rank holds.
        copies: Copies of the parameters.
        refusal: Why it cannot be made; the numbers are 0 then.
    """

    name: str
    makespan_us: float = 0.0
    span_us: float = 0.0
    bubble: float = 0.0
    peak: float = 0.0
    copies: int = 1
    refusal: str = ""


def compare(config: ScheduleConfig) -> list[Entry]:
    """Every schedule, and the search at the limit, or at the memory of zb-v.

    Raises:
        UsageError: The costs are wrong.
    """
    share = config.share_costs()
    entries = []
    limit = config.memory_limit
    for name in pipeline.schedule_names():
        # The number of chunks is for the one schedule that can have any.
        own = config if name == "interleaved" else replace(config, chunks=0)
        try:
            plan = simulated(named_schedule(own, name, share), share, name, communication=False)
        except ValueError as error:
            entries.append(Entry(name, refusal=str(error)))
            continue
        entries.append(_entry(name, plan.simulation, len(plan.schedule.placement.chains)))
        if name == "zb-v" and limit is None and _is_small(config):
            limit = entries[-1].peak
    if limit is not None:
        label = f"search <= {limit:.4g}"
        try:
            found = pipeline.search(
                num_ranks=config.pipeline_model_parallel_size,
                num_microbatches=config.num_microbatches,
                share=share_of(share),
                memory_limit=limit,
            )
        except ValueError as error:
            entries.append(Entry(label, refusal=str(error)))
        else:
            entries.append(_entry(label, found.simulation, 1))
    return entries


def _is_small(config: ScheduleConfig) -> bool:
    steps = 6 * config.pipeline_model_parallel_size * config.num_microbatches
    return steps <= MAX_SEARCHED_STEPS


def _entry(name: str, run: Any, copies: int) -> Entry:
    return Entry(
        name,
        makespan_us=run.makespan_us,
        span_us=run.span_us,
        bubble=run.bubble_fraction,
        peak=max(rank.peak_bytes for rank in run.ranks),
        copies=copies,
    )


def table(entries: list[Entry]) -> str:
    """The comparison as lines of text."""
    head = (
        f"{'schedule':<16}{'step us':>12}{'span us':>12}{'idle':>8}{'activations':>13}{'copies':>8}"
    )
    lines = [head, "-" * len(head)]
    for entry in entries:
        if entry.refusal:
            lines.append(f"{entry.name:<16}not possible: {entry.refusal}")
        else:
            lines.append(
                f"{entry.name:<16}{entry.makespan_us:>12.6g}{entry.span_us:>12.6g}"
                f"{entry.bubble:>8.1%}{entry.peak:>13.4g}{entry.copies:>8}"
            )
    notes = [
        "step: until every rank is done; span: when steps follow each other without that wait.",
        "activations: most microbatches on a rank, each for its share of the layers.",
        "copies: of the parameters.",
    ]
    return "\n".join([*lines, "", *notes])

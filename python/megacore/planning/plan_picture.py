"""Plans as pictures: where time and memory go, the pipeline of the best, and how it scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megacore.errors import UsageError
from megacore.planning.charts import Curve, bars, curves, stacked
from megacore.planning.estimates import StepEstimate, estimate
from megacore.planning.picture import Picture, draw_timeline, svg, write_png
from megacore.planning.plan_inputs import PlanInputs
from megacore.planning.plan_search import PlanResult, search
from megacore.planning.plan_text import NAMES, layout_words

GIBIBYTE = 1 << 30
# A timeline shows the same schedule with at most so many micro-batches for each rank.
_MICROBATCHES_PER_RANK = 3
_MAX_ROWS = 32
_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def plan_picture(inputs: PlanInputs, result: PlanResult) -> Picture:
    """Bars of time and memory of the plans, and the pipeline of the best.

    Args:
        inputs: What was asked.
        result: With at least one plan.
    """
    plans = result.plans
    memory = inputs.constraints.memory_bytes or inputs.profile.memory_bytes
    parts = [time_bars(plans), memory_bars(plans, memory)]
    timeline = pipeline_picture(inputs, plans[0])
    return stacked([*parts, timeline] if timeline is not None else parts)


def time_bars(plans: Sequence[StepEstimate]) -> Picture:
    """Seconds of a step of each plan."""
    rows = [
        (
            layout_words(plan.layout),
            {NAMES[key]: value for key, value in plan.breakdown.items()},
            f"{plan.step_s:.3g} s, {plan.mfu_full:.0%}",
        )
        for plan in plans
    ]
    return bars("time of a step, and MFU", rows)


def memory_bars(plans: Sequence[StepEstimate], limit_bytes: float) -> Picture:
    """GiB of the fullest process of each plan."""
    rows = [
        (
            layout_words(plan.layout),
            {name.replace("_", " "): size / GIBIBYTE for name, size in plan.memory.items()},
            f"{plan.memory_bytes / GIBIBYTE:.1f} GiB",
        )
        for plan in plans
    ]
    limit = limit_bytes / GIBIBYTE
    return bars("memory of the fullest process", rows, limit=(limit, f"{limit:.0f} GiB"))


def pipeline_picture(inputs: PlanInputs, plan: StepEstimate) -> Picture | None:
    """The pipeline with a few micro-batches; None where there is none, or it has too many ranks."""
    layout = plan.layout
    if layout.pp == 1 or layout.pp > _MAX_ROWS:
        return None
    count = min(plan.num_microbatches, _MICROBATCHES_PER_RANK * layout.pp)
    short = plan
    if count < plan.num_microbatches:
        batch = count * layout.micro_batch * layout.dp
        short = estimate(layout, inputs.model, inputs.profile, batch)
    simulation = short.timeline()
    if simulation is None:
        return None
    shown = "" if count == plan.num_microbatches else f" (of {plan.num_microbatches})"
    return draw_timeline(
        simulation,
        title=f"pipeline of the best: {layout.schedule}, {layout.pp} ranks",
        summary=f"{count}{shown} micro-batches, step {short.step_s:.3g} s, "
        f"bubble {short.bubble_fraction:.1%}",
    )


def scaling_picture(inputs: PlanInputs) -> Picture:
    """The best plan at a quarter to four times the GPUs: strong and weak scaling.

    Raises:
        UsageError: No number of GPUs has a plan.
    """
    gpus, batch = inputs.constraints.gpus, inputs.constraints.global_batch
    strong, weak = [], []
    for factor in _SCALES:
        count = round(factor * gpus)
        if count < 1 or count != factor * gpus:
            continue
        strong.append(_best(inputs, count, batch))
        if batch * factor == round(batch * factor):
            weak.append(_best(inputs, count, round(batch * factor)))
    lines = []
    for name, points, colour in (
        (f"same batch of {batch:,}", strong, "#2563eb"),
        (f"same batch per GPU ({batch / gpus:g})", weak, "#0f766e"),
    ):
        found = tuple((float(x), plan) for x, plan in points if plan is not None)
        if found:
            at = tuple((x, plan.tokens_per_s / 1e3) for x, plan in found)
            mfu = tuple((x, 100 * plan.mfu_full) for x, plan in found)
            lines.append((Curve(name, at, colour), Curve(name, mfu, colour)))
    if not lines:
        raise UsageError("no number of GPUs from a quarter to four times has a plan that fits")
    x, y = lines[0][0].points[0]
    ideal = tuple((px, y * px / x) for px, _ in lines[0][0].points)
    throughput = [Curve("ideal", ideal, "#9ca3af", dashed=True), *(line for line, _ in lines)]
    return stacked(
        [
            curves("throughput", throughput, across="GPUs", up="thousand tokens/s", log_up=True),
            curves("MFU", [line for _, line in lines], across="GPUs", up="% of the peak"),
        ]
    )


def _best(inputs: PlanInputs, gpus: int, batch: int) -> tuple[int, StepEstimate | None]:
    constraints = replace(inputs.constraints, gpus=gpus, global_batch=batch, top=1)
    plans = search(inputs.model, inputs.profile, constraints).plans
    return gpus, plans[0] if plans else None


def write_picture(picture: Picture, name: str) -> None:
    """Writes a picture as SVG or PNG, as the name ends.

    Raises:
        UsageError: The file cannot be written.
    """
    path = Path(name)
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(svg(picture), encoding="utf-8")
        else:
            write_png(picture, path)
    except OSError as error:
        raise UsageError(f"{name}: cannot be written: {error.strerror}") from error

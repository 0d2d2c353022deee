"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megacore.planning.estimates import StepEstimate
from megacore.planning.layouts import Layout
from megacore.planning.plan_inputs import PlanInputs
from megacore.planning.plan_run import check_lines, launch_lines, training_flags
from megacore.planning.plan_search import PlanResult

GIBIBYTE = 1 << 30
_BAR = 40
_SHOWN_OPS = 16
# Keys of StepEstimate -> what readers call them.
NAMES = {
    "matmul": "matrix products",
    "attention": "attention",
    "memory_bound": "norms, activations, loss",
    "launch": "starting kernels",
    "recompute": "recompute",
    "tp_exposed": "tensor-parallel waits",
    "cp_exposed": "context-parallel waits",
    "pp_exposed": "pipeline waits",
    "dp_exposed": "data-parallel waits",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "other": "other",
}


def layout_words(layout: Layout) -> str:
    """A layout in a few words, such as "tp 8 sp, pp 16 interleaved x3, dp 24, micro-batch 1"."""
    parts = [f"tp {layout.tp}{' sp' if layout.sequence_parallel else ''}"]
    if layout.pp > 1:
        stages = f" x{layout.virtual_stages}" if layout.virtual_stages > 1 else ""
        parts.append(f"pp {layout.pp} {layout.schedule}{stages}")
    if layout.cp > 1:
        parts.append(f"cp {layout.cp}")
    parts += [f"dp {layout.dp}", f"micro-batch {layout.micro_batch}"]
    if layout.sharding != "no_shard":
        parts.append(f"sharded {layout.sharding}")
    if layout.recompute != "none":
        parts.append(f"{layout.recompute} recompute")
    return ", ".join(parts)


def plan_lines(inputs: PlanInputs, result: PlanResult, free: PlanResult | None) -> Iterator[str]:
    """The report, line by line.

    Args:
        inputs: What was asked.
        result: What was found.
        free: The same without what flags fix, where they fix something.
    """
    yield from _question(inputs)
    proof = "" if result.is_proven else ", the search was ended early"
    yield (
        f"{result.considered:,} layouts considered, {result.legal:,} can run, {result.fitting:,} "
        f"may fit, {result.simulated:,} simulated, in {result.seconds:.2f} s{proof}"
    )
    if not result.plans:
        yield "no layout can run and fits:"
        yield from _rejections(result)
        return
    yield ""
    yield from _table(result.plans)
    best = result.plans[0]
    if free is not None and free.plans and free.plans[0].step_s < 0.995 * best.step_s:
        other = free.plans[0]
        yield (
            f"without what the flags fix: {_seconds(other.step_s)} "
            f"({best.step_s / other.step_s - 1:.1%} more steps), {layout_words(other.layout)}"
        )
    yield ""
    yield from best_lines(best)
    if inputs.config.explain:
        yield ""
        yield from _explanation(result)
    yield ""
    yield from _commands(inputs, best)


def _question(inputs: PlanInputs) -> Iterator[str]:
    model, profile, constraints = inputs.model, inputs.profile, inputs.constraints
    tokens = constraints.global_batch * model.seq_length
    yield (
        f"{model.family} of {model.num_parameters() / 1e9:.3g} billion parameters, sequences of "
        f"{model.seq_length:,}, {constraints.global_batch:,} a step ({tokens / 1e6:.3g} million "
        f"tokens), {model.dtype}"
    )
    links = ", ".join(f"{link.name} {link.bytes_per_s / 1e9:g} GB/s" for link in profile.links)
    limit = constraints.memory_bytes or profile.memory_bytes
    yield (
        f"{constraints.gpus:,} x {profile.name}, {profile.gpus_per_node} a machine, {links}; "
        f"{limit / GIBIBYTE:.1f} GiB each"
    )
    if inputs.pinned:
        yield "kept, because flags say so: " + ", ".join(inputs.pinned.values())


def _table(plans: Sequence[StepEstimate]) -> Iterator[str]:
    head = ("", "step", "tokens/s", "TFLOP/s", "MFU", "bubble", "memory", "layout")
    rows = [
        (
            str(number),
            _seconds(plan.step_s),
            f"{plan.tokens_per_s:,.0f}",
            f"{plan.tflops_per_gpu:.1f}"
            if plan.tflops_per_gpu >= 1
            else f"{plan.tflops_per_gpu:.4f}",
            f"{plan.mfu_full:.1%}",
            f"{plan.bubble_fraction:.1%}",
            f"{plan.memory_bytes / GIBIBYTE:.1f} GiB",
            layout_words(plan.layout),
        )
        for number, plan in enumerate(plans, 1)
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def best_lines(plan: StepEstimate) -> Iterator[str]:
    """Time, memory and communication of one plan."""
    yield (
        f"a step of {_seconds(plan.step_s)}: {plan.num_microbatches} micro-batches, "
        f"{plan.mfu_full:.1%} MFU ({plan.mfu_causal:.1%} with causal attention, "
        f"{plan.hfu:.1%} with recompute)"
    )
    for key, value in plan.breakdown.items():
        share = value / plan.step_s
        if share >= 0.0005:
            bar = "#" * round(_BAR * share)
            yield f"  {NAMES[key]:<25} {_seconds(value):>10} {share:6.1%} {bar}".rstrip()
    behind = {axis: seconds for axis, seconds in plan.hidden.items() if seconds > 0}
    if behind:
        words = ", ".join(f"{axis} {_seconds(seconds)}" for axis, seconds in behind.items())
        yield f"  behind compute: {words}"
    yield f"memory of the fullest process, {plan.memory_bytes / GIBIBYTE:.2f} GiB:"
    yield "  " + _sizes(plan.memory)
    if len(plan.memory_by_rank) > 1:
        ranks = " ".join(f"{size / GIBIBYTE:.1f}" for size in plan.memory_by_rank)
        yield f"  by pipeline rank (GiB): {ranks}"
    if any(plan.volume.values()):
        yield f"sent by a process in a step: {_sizes(plan.volume)}"


def _sizes(sizes: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {size / GIBIBYTE:.2f} GiB"
        for name, size in sizes.items()
        if size >= 0.005 * GIBIBYTE or (size > 0 and max(sizes.values()) < GIBIBYTE)
    )


def _explanation(result: PlanResult) -> Iterator[str]:
    if result.losers:
        best = result.plans[0].step_s
        yield "best with another choice:"
        choices: dict[Layout, list[str]] = {}
        losers = sorted(result.losers, key=lambda loser: loser.step_s)
        for loser in losers:
            choice = f"{loser.axis.replace('_', ' ')} {loser.value}"
            choices.setdefault(loser.layout, []).append(choice)
        for layout, words in choices.items():
            loser = next(one for one in losers if one.layout == layout)
            yield f"  {loser.step_s / best - 1:+7.1%}  {layout_words(layout)}"
            yield f"           {', '.join(words)}: {loser.why}"
    if result.rejected:
        yield "cannot run or does not fit:"
        yield from _rejections(result)
    yield "operations of a step of the busiest process:"
    ops = sorted(result.plans[0].ops, key=lambda op: -(op.forward_s + op.backward_s))
    for op in ops[:_SHOWN_OPS]:
        yield (
            f"  {op.name:<16} {op.category.replace('_', ' '):<13} {op.count:>7,} times: "
            f"{_seconds(op.forward_s):>9} forward, {_seconds(op.backward_s):>9} backward"
        )


def _rejections(result: PlanResult) -> Iterator[str]:
    for rejection in sorted(result.rejected, key=lambda one: -one.count):
        example = rejection.example
        shown = f" (such as {layout_words(example)})" if example is not None else ""
        yield f"  {rejection.count:>9,}  {rejection.reason}{shown}"


def _commands(inputs: PlanInputs, best: StepEstimate) -> Iterator[str]:
    words = training_flags(inputs.base, inputs.model, best.layout)
    size, per_node = best.layout.world_size, inputs.profile.gpus_per_node
    family = inputs.base.model.model_family
    if family == "gpt":  # simulated worlds measure no other
        yield "to check it on any machine:"
        yield from check_lines(words, processes=size)
    yield "to run it:"
    yield from launch_lines(
        words,
        processes=size,
        per_node=min(size, per_node),
        family=family,
    )


def _seconds(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{value * 1e3:.3g} ms"
    return f"{value * 1e6:.3g} us"

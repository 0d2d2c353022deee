"""The report of a simulated run as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megacore.planning.simulate_world import RankReport, WorldReport

GIBIBYTE = 1 << 30


def format_world(report: WorldReport) -> str:
    """Several lines: the run as a whole, then each kind of process.

    Args:
        report: As `simulate_world` gave.
    """
    degrees = " x ".join(f"{axis} {size}" for axis, size in report.degrees.items())
    processes = 1
    for size in report.degrees.values():
        processes *= size
    lines = [
        f"simulated run of {processes} processes: {degrees} (order {report.order})",
        f"  {report.num_parameters:,} parameters, {report.num_microbatches} micro-batches per step",
    ]
    if report.schedule != "none":
        lines.append(
            f"  pipeline schedule {report.schedule}: {report.num_stages} stages, checked; "
            f"{report.bubble:.1%} of the time is bubble"
        )
    for rank in report.ranks:
        lines += _rank_lines(rank, alone=len(report.ranks) == 1)
    return "\n".join(lines)


def _rank_lines(rank: RankReport, *, alone: bool) -> Iterator[str]:
    state = rank.state
    where = "each process" if alone else f"pipeline rank {_ranges(rank.pipeline_ranks)}"
    yield f"{where}: {'; '.join(rank.stages)}"
    yield (
        f"  {state.num_params:,} parameters, {state.bytes_per_parameter:.2f} bytes each; "
        f"computes {rank.busy:.1%} of the time"
    )
    sizes = {
        "parameters": state.parameters,
        "gradients": state.gradients + state.main_gradients,
        "optimizer": state.main_parameters + state.state,
        "activations": rank.activation_bytes,
        "temporary": rank.transient_bytes,
    }
    parts = " + ".join(f"{name} {size / GIBIBYTE:.2f}" for name, size in sizes.items())
    yield f"  memory (GiB): {rank.total_bytes / GIBIBYTE:.2f} = {parts}"
    yield "  sent per step (GiB):"
    for (group, operation), calls in sorted(rank.traffic.calls.items()):
        sent = rank.traffic.sent_bytes[group, operation] / GIBIBYTE
        yield f"    {group:<9} {operation:<15} {sent:10.3f} in {calls} calls"
    if not rank.traffic.calls:
        yield "    nothing"


def _ranges(numbers: Sequence[int]) -> str:
    """Such as "0, 2-5"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

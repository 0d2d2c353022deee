"""Predicted against published step times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megacore.planning.published import PublishedRun, predict, published_rows

GROUPS = ("fit", "test", "other")


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """A published run and its estimate.

    Attributes:
        group: "fit", "test" or "other", as in `PublishedRun`.
        measured_s: Seconds of a step, as published.
        measured_tflops: Per GPU and second, by the convention of the source.
        predicted_tflops: The same of the estimate.
        error: Predicted over measured time, less one.
    """

    run: str
    source: str
    gpu: str
    group: str
    gpus: int
    measured_s: float
    predicted_s: float
    measured_tflops: float
    predicted_tflops: float
    error: float
    note: str


@dataclass(frozen=True, kw_only=True)
class ErrorSummary:
    """Errors of some rows.

    Attributes:
        gpu: Their hardware.
        group: Their group; "all" for fit and test together.
        count: Rows.
        median: Of the absolute errors.
        p90: The absolute error that nine of ten rows do not exceed.
        worst: The largest.
        rank_correlation: Spearman's, of measured and predicted step times.
    """

    gpu: str
    group: str
    count: int
    median: float
    p90: float
    worst: float
    rank_correlation: float


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """All rows, and the errors of each group."""

    rows: tuple[ValidationRow, ...]
    summary: tuple[ErrorSummary, ...]


def validate(runs: Sequence[PublishedRun] | None = None) -> ValidationReport:
    """Predicts published runs.

    Args:
        runs: Those to predict; None: all.
    """
    rows = tuple(_row(run) for run in (published_rows() if runs is None else runs))
    return ValidationReport(rows=rows, summary=tuple(_summaries(rows)))


def _row(run: PublishedRun) -> ValidationRow:
    predicted = predict(run).step_s
    return ValidationRow(
        run=run.run,
        source=run.source,
        gpu=run.gpu,
        group=run.group,
        gpus=run.layout.world_size,
        measured_s=run.step_s,
        predicted_s=predicted,
        measured_tflops=run.tflops,
        predicted_tflops=run.tflops * run.step_s / predicted,
        error=predicted / run.step_s - 1.0,
        note=run.note,
    )


def _summaries(rows: Sequence[ValidationRow]) -> Iterator[ErrorSummary]:
    gpus = sorted({row.gpu for row in rows})
    for gpu in [*gpus, "all"]:
        for group in (*GROUPS, "all"):
            groups = ("fit", "test") if group == "all" else (group,)
            chosen = [row for row in rows if row.gpu in (gpu,) or gpu == "all"]
            chosen = [row for row in chosen if row.group in groups]
            if chosen:
                yield summarize(gpu, group, chosen)


def summarize(gpu: str, group: str, rows: Sequence[ValidationRow]) -> ErrorSummary:
    """The errors of some rows, at least one."""
    errors = sorted(abs(row.error) for row in rows)
    middle = len(errors) // 2
    median = errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
    return ErrorSummary(
        gpu=gpu,
        group=group,
        count=len(errors),
        median=median,
        p90=errors[math.ceil(0.9 * len(errors)) - 1],
        worst=errors[-1],
        rank_correlation=rank_correlation(
            [row.measured_s for row in rows], [row.predicted_s for row in rows]
        ),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their rank. NaN for fewer than two values.

    Args:
        first: Values.
        second: As many.
    """
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return covariance / spread if spread else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for place in range(first, last + 1):
            ranks[order[place]] = (first + last) / 2
        first = last + 1
    return ranks


def format_validation(report: ValidationReport) -> str:
    """The report as text: rows, sources with their notes, errors."""
    lines = [
        f"{'run':30} {'group':6} {'GPUs':>6} {'published':>20} {'predicted':>20} {'error':>7}",
        f"{'':30} {'':6} {'':>6} {'s':>10}{'TFLOP/s':>10} {'s':>10}{'TFLOP/s':>10} {'':>7}",
    ]
    source = ""
    for row in report.rows:
        if row.source != source:
            source = row.source
            lines += ["", f"{source} ({row.gpu})"]
        lines.append(
            f"  {row.run:28} {row.group:6} {row.gpus:6,d} {row.measured_s:10.3f}"
            f"{row.measured_tflops:10.1f} {row.predicted_s:10.3f}{row.predicted_tflops:10.1f} "
            f"{row.error:+7.1%}"
        )
    lines += ["", f"{'step time, absolute error':24} {'rows':>5} {'median':>7} {'90%':>7} "]
    lines[-1] += f"{'worst':>7} {'rank correlation':>17}"
    for part in report.summary:
        lines.append(
            f"{part.gpu:15} {part.group:8} {part.count:5d} {part.median:7.1%} {part.p90:7.1%} "
            f"{part.worst:7.1%} {part.rank_correlation:17.3f}"
        )
    notes = dict.fromkeys(f"{row.source}: {row.note}" for row in report.rows if row.note)
    return "\n".join([*lines, "", "assumed where a source is silent:", *sorted(notes)])

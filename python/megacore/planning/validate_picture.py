"""Published scaling as curves, with the estimates beside them."""

from __future__ import annotations

from dataclasses import replace

from megacore.errors import UsageError
from megacore.planning.charts import Curve, curves, stacked
from megacore.planning.picture import Picture
from megacore.planning.published import PublishedRun, predict, published_rows

_INK, _GUESS = "#2563eb", "#dc2626"
# Replicas of a strong-scaling run, as multiples of those of its smallest row.
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


def published_scaling() -> Picture:
    """Weak scaling of two papers and strong scaling of one: TFLOP/s of each GPU."""
    rows = published_rows()

    def named(prefix: str) -> list[PublishedRun]:
        found = [row for row in rows if row.run.startswith(prefix)]
        return sorted(found, key=lambda row: row.layout.world_size)

    return stacked(
        [
            _both("weak scaling on H100, 2 to 462 billion parameters", named("weak-")),
            _strong("strong scaling of 177 billion parameters on H100", named("strong-")),
            _both("weak scaling on A100, 1.7 to 1008 billion parameters", named("table1-")),
        ]
    )


def _both(title: str, rows: list[PublishedRun]) -> Picture:
    """What was published, and an estimate for every row."""
    return _chart(title, rows, [_estimated(row) for row in rows])


def _strong(title: str, rows: list[PublishedRun]) -> Picture:
    """What was published, and estimates for numbers of GPUs between the rows."""
    first, last = rows[0], rows[-1]
    points = []
    for multiple in _MULTIPLES:
        layout = replace(first.layout, dp=first.layout.dp * multiple)
        if layout.world_size > last.layout.world_size:
            break
        try:
            points.append(_estimated(replace(first, layout=layout)))
        except UsageError:
            continue  # the batch does not divide among so many
    return _chart(title, rows, points)


def _estimated(row: PublishedRun) -> tuple[float, float]:
    """GPUs and TFLOP/s of each, by the convention of the row."""
    found = predict(row)
    gpus = row.layout.world_size
    # The operations of a step, by the convention of the row, that its figures amount to.
    published = published_rows([row.run])[0]
    work = published.tflops * published.step_s * published.layout.world_size
    return float(gpus), work / found.step_s / gpus


def _chart(title: str, rows: list[PublishedRun], points: list[tuple[float, float]]) -> Picture:
    measured = tuple((float(row.layout.world_size), row.tflops) for row in rows)
    return curves(
        title,
        [Curve("published", measured, _INK), Curve("estimate", tuple(points), _GUESS)],
        across="GPUs",
        up="TFLOP/s of each GPU",
    )

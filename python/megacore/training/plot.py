"""`megacore plot RUN_DIR`: loss, learning rate, gradient norm and throughput as one PNG."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megacore.errors import EXIT_OK
from megacore.training.curves import Curves, Series, read_curves
from megacore.training.log_line import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_COLOURS = ("#2563eb", "#7c3aed", "#0891b2")
VALIDATION_COLOURS = ("#ea580c", "#db2777", "#65a30d")
GREY = "#6b7280"
SMOOTHING_POINTS = 40
LOG_SCALE_RATIO = 50.0


def plot(curves: Curves, output: Path) -> None:
    """Draw the curves into a PNG file.

    Args:
        curves: What was read from the run.
        output: File to write; its directory must exist.
    """
    # Agg draws without a display; the figure is made directly so that no global state is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_losses(axes[0][0], curves)
    _draw_series(axes[0][1], curves.learning_rate, "learning rate", TRAIN_COLOURS[0])
    axes[0][1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _draw_series(axes[1][0], curves.grad_norm, "gradient norm", TRAIN_COLOURS[1], smooth=True)
    unit = curves.throughput_unit
    _draw_series(
        axes[1][1], curves.throughput, f"throughput, {unit}", TRAIN_COLOURS[2], smooth=True
    )
    if curves.throughput.values:
        finite = [value for value in curves.throughput.values if math.isfinite(value)]
        axes[1][1].set_ylim(0, 1.15 * max(finite, default=1.0))
    figure.suptitle(_title(curves), fontsize=12, color="#111827")
    figure.savefig(output, dpi=130, format="png")


def _draw_losses(axes: Axes, curves: Curves) -> None:
    for position, (name, series) in enumerate(curves.train.items()):
        colour = TRAIN_COLOURS[position % len(TRAIN_COLOURS)]
        _curve(axes, series, colour, f"{name}, training", smooth=True)
    for position, (name, series) in enumerate(curves.validation.items()):
        colour = VALIDATION_COLOURS[position % len(VALIDATION_COLOURS)]
        axes.plot(
            series.iterations,
            series.values,
            color=colour,
            marker="o",
            markersize=4.5,
            linewidth=1.6,
            label=f"{name}, validation",
        )
    _finish(axes, "loss")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def _draw_series(
    axes: Axes, series: Series, title: str, colour: str, *, smooth: bool = False
) -> None:
    if series.values:
        _curve(axes, series, colour, None, smooth=smooth)
        positive = [value for value in series.values if math.isfinite(value) and value > 0]
        spread = max(positive, default=1.0) / min(positive, default=1.0)
        if "norm" in title and spread > LOG_SCALE_RATIO:
            axes.set_yscale("log")
    else:
        axes.text(
            0.5, 0.5, "not recorded", ha="center", va="center", color=GREY, transform=axes.transAxes
        )
    _finish(axes, title)


def _curve(axes: Axes, series: Series, colour: str, label: str | None, *, smooth: bool) -> None:
    """The values, faint below their running mean when there are many; gaps where not finite."""
    x, y = np.asarray(series.iterations), np.asarray(series.values, dtype=np.float64)
    y[~np.isfinite(y)] = np.nan
    if smooth and len(y) >= 2 * SMOOTHING_POINTS:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(x, _running_mean(y, len(y) // SMOOTHING_POINTS), color=colour, label=label)
    else:
        marker = "." if len(y) <= SMOOTHING_POINTS else None
        axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, label=label)


def _running_mean(values: np.ndarray[Any, np.dtype[np.float64]], width: int) -> Any:
    """Mean over the last `width` values that are finite (fewer at the start)."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - max(1, width))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", color="#111827")
    axes.set_xlabel("iteration", fontsize=9, color=GREY)
    axes.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#d1d5db")
    axes.margins(x=0.02)


def _title(curves: Curves) -> str:
    parts = [str(curves.source)]
    for kind, group in (("training", curves.train), ("validation", curves.validation)):
        for name, series in group.items():
            if series.values:
                last = series.values[-1]
                text = f"{name} {last:.3f} ({kind}, iteration {series.iterations[-1]}"
                if kind == "validation" and not math.isnan(last):
                    text += f", perplexity {perplexity(last):.1f}"
                parts.append(text + ")")
    return "\n".join([parts[0], "   ".join(parts[1:])])


def main(argv: list[str]) -> int:
    """Entry of the verb `plot`."""
    parser = argparse.ArgumentParser(
        prog="megacore plot",
        description="Draw loss, learning rate, gradient norm and throughput of a run into a PNG.",
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="run directory with metrics.jsonl or TensorBoard events, or one such file, "
        "or a log file",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=None,
        help="PNG to write; default RUN_DIR/curves.png, or beside the file",
    )
    options = parser.parse_args(argv)
    curves = read_curves(options.run)
    home = options.run if options.run.is_dir() else options.run.parent
    output = options.output or home / "curves.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    plot(curves, output)
    print(f"wrote {output}")
    return EXIT_OK

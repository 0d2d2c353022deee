"""A timeline as a picture: boxes, lines and words, written as SVG or PNG."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from megacore._C import pipeline
from megacore.planning.schedules import Plan

INK, GREY, FAINT, PAPER = "#111827", "#6b7280", "#e5e7eb", "#ffffff"
# Kind -> colours of a rank's first stage and of its other stages.
COLOURS = {
    pipeline.Kind.FORWARD: ("#2563eb", "#93c5fd"),
    pipeline.Kind.BACKWARD: ("#0f766e", "#5eead4"),
    pipeline.Kind.INPUT_GRAD: ("#15803d", "#86efac"),
    pipeline.Kind.WEIGHT_GRAD: ("#b45309", "#fcd34d"),
}
TRANSFER = "#9ca3af"
NAMES = {
    pipeline.Kind.FORWARD: "forward",
    pipeline.Kind.BACKWARD: "backward",
    pipeline.Kind.INPUT_GRAD: "input gradient",
    pipeline.Kind.WEIGHT_GRAD: "weight gradient",
}
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
LEFT, TOP, ROW, BAR, LANE = 64.0, 58.0, 28.0, 22.0, 3.0
WIDTH = 1080.0
MIN_STEP, MAX_STEP = 4.0, 40.0  # pixels of the shortest step
# Makespans from which an axis has this unit, ten of it; shorter ones are in microseconds.
UNITS = ((1e7, "s"), (1e4, "ms"), (0.0, "us"))
DIGIT = 6.4  # pixels of a digit at size 11


@dataclass(frozen=True)
class Box:
    """A filled rectangle; pixels, y down."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True)
class Word:
    """Text with its baseline at y; `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    fill: str = INK
    size: float = 11.0
    anchor: str = "start"


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point; pixels, y down."""

    points: tuple[tuple[float, float], ...]
    stroke: str
    width: float = 1.5
    dashed: bool = False


@dataclass
class Picture:
    """What to draw, in order: boxes, lines, then words."""

    width: float
    height: float
    boxes: list[Box] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def draw(plan: Plan) -> Picture:
    """The timeline of a plan."""
    return draw_timeline(plan.simulation, title=plan.title, summary=plan.summary)


def draw_timeline(simulation: Any, *, title: str, summary: str) -> Picture:
    """The timeline of a simulated schedule.

    Rows are ranks; numbers are microbatches; dark steps belong to the first stage of a rank, light
    ones to its others. Transfers are thin lines below their rank.

    Args:
        simulation: Of `megacore._C.pipeline`.
        title: Head line.
        summary: Second line.
    """
    timeline, makespan = simulation.timeline, simulation.makespan_us
    compute = [
        end - start
        for events in timeline
        for action, start, end in events
        if action.kind in COLOURS and end > start
    ]
    scale = (WIDTH - LEFT - 20) / makespan
    if compute:
        scale = min(max(scale, MIN_STEP / min(compute)), MAX_STEP / min(compute))
    width = max(LEFT + scale * makespan + 20, 640.0)
    picture = Picture(width, TOP + ROW * len(timeline) + 62)
    picture.words.append(Word(12, 22, title, size=15))
    picture.words.append(Word(12, 41, summary, fill=GREY, size=12))
    for rank, events in enumerate(timeline):
        y = TOP + ROW * rank
        picture.words.append(Word(LEFT - 8, y + 15.5, f"rank {rank}", GREY, anchor="end"))
        picture.boxes.append(Box(LEFT, y, scale * makespan, BAR, "#f3f4f6"))
        first = min((action.stage for action, _, _ in events), default=0)
        for action, start, end in events:
            x, wide = LEFT + scale * start, scale * (end - start)
            if action.kind not in COLOURS:
                picture.boxes.append(Box(x, y + BAR + 1, wide, LANE, TRANSFER))
                continue
            later = action.stage != first
            gap = 1.0 if wide > MIN_STEP else 0.0
            fill = COLOURS[action.kind][later]
            picture.boxes.append(Box(x, y, max(wide - gap, 0.0), BAR, fill))
            text = str(action.number)
            if DIGIT * len(text) + 2 <= wide:
                ink = INK if later else PAPER
                picture.words.append(
                    Word(x + (wide - gap) / 2, y + 15.5, text, ink, anchor="middle")
                )
    _draw_axis(picture, scale, makespan, TOP + ROW * len(timeline))
    _draw_legend(picture, timeline, TOP + ROW * len(timeline) + 40)
    return picture


def _draw_axis(picture: Picture, scale: float, makespan: float, y: float) -> None:
    """Ticks at round times, about 90 pixels apart."""
    wanted = 90 / scale
    power = 10.0 ** _floor_log10(wanted)
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= wanted)
    unit, name = next(one for one in UNITS if makespan >= one[0] or one is UNITS[-1])
    for tick in range(int(makespan / step) + 1):
        x = LEFT + scale * step * tick
        picture.boxes.append(Box(x, y, 1, 4, GREY))
        shown = step * tick if name == "us" else step * tick / unit * 10
        picture.words.append(Word(x, y + 16, f"{shown:g}", GREY, 10, "middle"))
    picture.words.append(Word(LEFT - 8, y + 16, name, GREY, 10, "end"))


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _draw_legend(picture: Picture, timeline: Any, y: float) -> None:
    kinds = {action.kind for events in timeline for action, _, _ in events}
    several = any(len({action.stage for action, _, _ in events}) > 1 for events in timeline)
    x = LEFT
    for kind, (dark, light) in COLOURS.items():
        if kind not in kinds:
            continue
        picture.boxes.append(Box(x, y, 16, 12, dark))
        if several:
            picture.boxes.append(Box(x + 16, y, 16, 12, light))
            x += 16
        picture.words.append(Word(x + 22, y + 10, NAMES[kind], GREY))
        x += 22 + 6.2 * len(NAMES[kind]) + 22
    if kinds - set(COLOURS):
        picture.boxes.append(Box(x, y + 5, 16, LANE, TRANSFER))
        picture.words.append(Word(x + 22, y + 10, "transfer", GREY))
        x += 90
    if several:
        picture.words.append(
            Word(x, y + 10, "light: further stages of the rank; numbers: microbatches", GREY)
        )
    else:
        picture.words.append(Word(x, y + 10, "numbers: microbatches", GREY))


def svg(picture: Picture) -> str:
    """The picture as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.width:.0f}" '
        f'height="{picture.height:.0f}" viewBox="0 0 {picture.width:.0f} {picture.height:.0f}" '
        f'font-family="{FONT}">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for box in picture.boxes:
        lines.append(
            f'<rect x="{_short(box.x)}" y="{_short(box.y)}" width="{_short(box.width)}" '
            f'height="{_short(box.height)}" fill="{box.fill}"/>'
        )
    for line in picture.lines:
        points = " ".join(f"{_short(x)},{_short(y)}" for x, y in line.points)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{line.stroke}" '
            f'stroke-width="{line.width:g}"{dashes}/>'
        )
    for word in picture.words:
        anchor = "" if word.anchor == "start" else f' text-anchor="{word.anchor}"'
        lines.append(
            f'<text x="{_short(word.x)}" y="{_short(word.y)}" fill="{word.fill}" '
            f'font-size="{word.size:g}"{anchor}>{escape(word.text)}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def write_png(picture: Picture, path: Path) -> None:
    """Writes the picture as a PNG file, two dots per pixel."""
    # The figure is made directly so that no global state of matplotlib is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    dots = 100.0
    figure = Figure(figsize=(picture.width / dots, picture.height / dots), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)
    axes.axis("off")
    patches = [Rectangle((b.x, b.y), b.width, b.height) for b in picture.boxes]
    axes.add_collection(
        PatchCollection(patches, facecolors=[b.fill for b in picture.boxes], linewidths=0)
    )
    for line in picture.lines:
        axes.plot(
            [x for x, _ in line.points],
            [y for _, y in line.points],
            color=line.stroke,
            linewidth=line.width * 72 / dots,
            linestyle=(0, (4, 3)) if line.dashed else "solid",
        )
    sides = {"start": "left", "middle": "center", "end": "right"}
    for word in picture.words:
        axes.text(
            word.x,
            word.y,
            word.text,
            color=word.fill,
            fontsize=word.size * 72 / dots,
            ha=sides[word.anchor],
            va="baseline",
        )
    figure.savefig(path, dpi=2 * dots, format="png")

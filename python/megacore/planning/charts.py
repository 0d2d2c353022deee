"""Bars and curves as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from megacore.planning.picture import FAINT, GREY, Box, Line, Picture, Word

LEFT, RIGHT, TITLE = 12.0, 110.0, 34.0
BAR_HEIGHT, BAR_STEP = 20.0, 44.0
BAR_WIDTH = 760.0
LETTER = 6.2
PALETTE = (
    "#2563eb",
    "#0f766e",
    "#93c5fd",
    "#9ca3af",
    "#b45309",
    "#dc2626",
    "#f97316",
    "#fcd34d",
    "#a855f7",
    "#e5e7eb",
    "#15803d",
    "#6b7280",
)


@dataclass(frozen=True)
class Curve:
    """Points of a chart.

    Attributes:
        name: In the legend.
        points: (x, y), in order of x.
        colour: Of line and marks.
        dashed: How the line is drawn.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False


def bars(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, float], str]],
    *,
    limit: tuple[float, str] | None = None,
) -> Picture:
    """Horizontal bars made of parts, one below the other.

    Args:
        title: Head line.
        rows: Label, part -> length, and what to write behind the bar.
        limit: A length that is marked, and its name.
    """
    parts = list(dict.fromkeys(name for _, sizes, _ in rows for name in sizes))
    parts = [name for name in parts if any(sizes.get(name, 0.0) > 0 for _, sizes, _ in rows)]
    longest = max([sum(sizes.values()) for _, sizes, _ in rows] + [limit[0] if limit else 0.0])
    scale = BAR_WIDTH / longest if longest > 0 else 0.0
    picture = Picture(LEFT + BAR_WIDTH + RIGHT, 0.0)
    picture.words.append(Word(12, 22, title, size=15))
    y = TITLE + 8
    for label, sizes, behind in rows:
        picture.words.append(Word(LEFT, y + 10, label, GREY))
        x, top = LEFT, y + 15
        for name in parts:
            length = scale * sizes.get(name, 0.0)
            if length > 0:
                picture.boxes.append(Box(x, top, length, BAR_HEIGHT, _colour(parts, name)))
                x += length
        picture.words.append(Word(x + 6, top + 14, behind, GREY))
        y += BAR_STEP
    if limit is not None:
        x = LEFT + scale * limit[0]
        picture.lines.append(Line(((x, TITLE + 2), (x, y)), "#dc2626", dashed=True))
        picture.words.append(Word(x, TITLE - 2, limit[1], "#dc2626", anchor="end"))
    y = _legend(picture, [(name, _colour(parts, name)) for name in parts], y + 14)
    picture.height = y + 10
    return picture


def _colour(parts: Sequence[str], name: str) -> str:
    return PALETTE[parts.index(name) % len(PALETTE)]


def _legend(picture: Picture, entries: Sequence[tuple[str, str]], y: float) -> float:
    """Coloured names in rows from the left; returns the y of the end."""
    x = 12.0
    for name, colour in entries:
        wide = 22 + LETTER * len(name) + 16
        if x + wide > picture.width - 10 and x > 12:
            x, y = 12.0, y + 20
        picture.boxes.append(Box(x, y, 14, 12, colour))
        picture.words.append(Word(x + 20, y + 10, name, GREY))
        x += wide
    return y + 16


def curves(
    title: str, lines: Sequence[Curve], *, across: str, up: str, log_up: bool = False
) -> Picture:
    """Curves over an axis of numbers of processes, on which equal ratios are equally far apart.

    Args:
        title: Head line.
        lines: What to draw; at least one point.
        across: Name of the horizontal axis.
        up: Name of the vertical one, which begins at 0 unless it is logarithmic.
        log_up: Whether equal ratios are equally far apart on the vertical axis too; all values
            are positive then.
    """
    left, top, wide, high = 70.0, 56.0, 660.0, 320.0
    picture = Picture(left + wide + 40, 0.0)
    picture.words.append(Word(12, 22, title, size=15))
    picture.words.append(Word(12, top - 12, up, GREY))
    xs = sorted({x for line in lines for x, _ in line.points})
    ticks = _ticks([y for line in lines for _, y in line.points], log_up)
    place = math.log if log_up else float
    low, high_value = place(ticks[0]), place(ticks[-1])
    span = math.log(xs[-1] / xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / xs[0]) / span
        height = (place(y) - low) / (high_value - low)
        return left + wide * (0.02 + 0.96 * share), top + high * (1 - height)

    for tick in ticks:
        y = at(xs[0], tick)[1]
        picture.lines.append(Line(((left, y), (left + wide, y)), FAINT, 1.0))
        picture.words.append(Word(left - 8, y + 4, f"{tick:,g}", GREY, 10, "end"))
    last = -math.inf
    for value in xs:
        x = left + wide * (0.02 + 0.96 * math.log(value / xs[0]) / span)
        if x - last < 34:
            continue
        last = x
        picture.boxes.append(Box(x, top + high, 1, 5, GREY))
        picture.words.append(Word(x, top + high + 18, f"{value:,g}", GREY, 10, "middle"))
    picture.words.append(Word(left + wide, top + high + 36, across, GREY, anchor="end"))
    for line in lines:
        points = tuple(at(x, y) for x, y in line.points)
        picture.lines.append(Line(points, line.colour, 2.0, line.dashed))
        if not line.dashed:
            picture.boxes += [Box(x - 3, y - 3, 6, 6, line.colour) for x, y in points]
    entries = [(line.name, line.colour) for line in lines]
    picture.height = _legend(picture, entries, top + high + 50) + 10
    return picture


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    """Round values that enclose the given ones."""
    most = max(values)
    if not log:
        power = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
        end = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= 0.999 * most)
        return [end * part / 5 for part in range(6)]
    powers = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(most)) + 1)
    steps = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(values) or i == 0)
    last = next((i for i, step in enumerate(steps) if step >= most), len(steps) - 1)
    return steps[first : max(last, first + 1) + 1]


def stacked(pictures: Sequence[Picture]) -> Picture:
    """Pictures one below the other."""
    result = Picture(max(picture.width for picture in pictures), 0.0)
    for picture in pictures:
        down = result.height
        result.boxes += [replace(box, y=box.y + down) for box in picture.boxes]
        result.words += [replace(word, y=word.y + down) for word in picture.words]
        result.lines += [
            replace(line, points=tuple((x, y + down) for x, y in line.points))
            for line in picture.lines
        ]
        result.height += picture.height
    return result

"""Bars and curves: positions follow values, everything is inside, text is escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from megacore.planning.charts import LEFT, Curve, Picture, bars, curves, stacked
from megacore.planning.picture import svg, write_png

ROWS = [("first <a>", {"x": 1.0, "y": 3.0}, "4 s"), ("second", {"y": 2.0, "z": 0.0}, "2 s")]
LINES = [
    Curve("one", ((1.0, 5.0), (4.0, 10.0), (16.0, 20.0)), "#2563eb"),
    Curve("two", ((4.0, 8.0),), "#0f766e", dashed=True),
]


def inside(picture: Picture) -> bool:
    boxes = all(
        box.x >= 0
        and box.y >= 0
        and box.x + box.width <= picture.width + 1e-6
        and box.y + box.height <= picture.height + 1e-6
        for box in picture.boxes
    )
    points = [point for line in picture.lines for point in line.points]
    words = [(word.x, word.y) for word in picture.words]
    return boxes and all(
        0 <= x <= picture.width and 0 <= y <= picture.height for x, y in points + words
    )


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars("title", ROWS, limit=(5.0, "5 GiB"))
    wide = [box for box in picture.boxes if box.height == 20.0]
    first_x, first_y, second_y = (box.width for box in wide)
    assert first_y == pytest.approx(3 * first_x)
    assert second_y == pytest.approx(2 * first_x)
    assert wide[0].fill != wide[1].fill == wide[2].fill
    marked = picture.lines[0].points[0][0]
    assert marked - LEFT == pytest.approx(5 * first_x)
    # What no row has is not in the legend.
    assert {word.text for word in picture.words} >= {"x", "y", "4 s", "second"}
    assert "z" not in {word.text for word in picture.words}
    assert inside(picture)


def test_curves_put_equal_ratios_equally_far_apart() -> None:
    picture = curves("title", LINES, across="GPUs", up="tokens/s")
    line = next(line for line in picture.lines if line.stroke == "#2563eb")
    (x1, y1), (x2, y2), (x3, y3) = line.points
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y1 - y2 == pytest.approx((y2 - y3) / 2)
    assert inside(picture)


def test_logarithmic_values() -> None:
    picture = curves("t", LINES, across="GPUs", up="tokens/s", log_up=True)
    line = next(line for line in picture.lines if line.stroke == "#2563eb")
    (_, y1), (_, y2), (_, y3) = line.points
    assert y1 - y2 == pytest.approx(y2 - y3)
    assert inside(picture)


def test_one_point_and_zero_values() -> None:
    picture = curves("t", [Curve("one", ((8.0, 0.0),), "#2563eb")], across="x", up="y")
    assert inside(picture)
    assert inside(bars("t", [("nothing", {"a": 0.0}, "0 s")]))


def test_stacked_and_written(tmp_path: Path) -> None:
    upper = bars("title", ROWS)
    lower = curves("title", LINES, across="GPUs", up="%")
    both = stacked([upper, lower])
    assert both.height == upper.height + lower.height
    assert len(both.boxes) == len(upper.boxes) + len(lower.boxes)
    assert inside(both)
    root = ElementTree.fromstring(svg(both))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "first <a>" in texts
    assert sum(element.tag.endswith("polyline") for element in root.iter()) == len(both.lines)
    path = tmp_path / "both.png"
    write_png(both, path)
    assert path.read_bytes().startswith(b"\x89PNG")

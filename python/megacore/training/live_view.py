"""Where the loop's lines go: plain text, or a live view under them on a terminal."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.console import Group as RenderGroup
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
CURVE_POINTS = 60


class Screen:
    """Prints the run's lines; on a terminal the newest figures stay visible below them.

    Args:
        live: Allow the live view.
        stream: Where lines go; the live view appears only when it is a terminal.
        silent: Show nothing: this is not the process that speaks for the run.
    """

    def __init__(
        self, *, live: bool = True, stream: TextIO | None = None, silent: bool = False
    ) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._silent = silent
        self._live: Live | None = None
        self._losses: deque[float] = deque(maxlen=CURVE_POINTS)
        if live and not silent and self._stream.isatty():
            console = Console(file=self._stream)
            self._live = Live(console=console, auto_refresh=False, transient=False)

    @property
    def is_live(self) -> bool:
        """Whether the live view is on."""
        return self._live is not None

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """Print `text`, which may hold several lines, at once."""
        if self._live is not None:
            self._live.console.print(Text(text), soft_wrap=True)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def update(self, *, done: int, total: int, loss: float, figures: Mapping[str, str]) -> None:
        """Renew the live view; does nothing without one.

        Args:
            done: Iterations done.
            total: Iterations to do.
            loss: Added to the loss curve when it is finite.
            figures: Label -> value, shown as a table.
        """
        if self._live is None:
            return
        if math.isfinite(loss):
            self._losses.append(loss)
        self._live.update(self._render(done, total, figures), refresh=True)

    def _render(self, done: int, total: int, figures: Mapping[str, str]) -> Panel:
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(style="cyan", no_wrap=True)
            table.add_column(no_wrap=True, min_width=22)
        cells = list(figures.items())
        half = (len(cells) + 1) // 2
        for row in range(half):
            left = cells[row]
            right = cells[half + row] if half + row < len(cells) else ("", "")
            table.add_row(*left, *right)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(1, total), completed=done, width=44),
            f"{done}/{total} ({100 * done / max(1, total):.1f}%)",
        )
        curve = Text(f"loss {sparkline(list(self._losses))}", style="green")
        return Panel(RenderGroup(bar, curve, table), title="megacore train", expand=False)


def sparkline(values: list[float]) -> str:
    """The values as a row of bars, lowest to highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)

"""Which layout of processes to show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """A number of processes on machines, and how to show what each of them does."""

    GROUP: ClassVar[str] = "layout"

    world_size: int = flag(
        "--world-size", default=8, help="processes of the run", bounds="[1, 1048576]"
    )
    processes_per_machine: int = flag(
        "--processes-per-machine", default=8, help="processes of one machine", bounds="[1, 64]"
    )
    axis: str | None = flag(
        "--axis",
        default=None,
        choices=("tp", "cp", "pp", "dp"),
        help="the only axis to show; by default all, in pictures those that divide something",
    )
    svg: str | None = flag("--svg", default=None, help="write the picture, SVG")
    png: str | None = flag("--png", default=None, help="write the picture, PNG")

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the values alone."""
        yield from value_faults(self)

"""The groups of a layout of processes, axis by axis, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import make_grid

AXES = {
    "tp": "tensor",
    "cp": "context",
    "pp": "pipeline",
    "dp": "data",
}
_SHOWN = 8


@dataclass(frozen=True)
class AxisGroups:
    """All groups of one axis.

    Attributes:
        axis: Short name.
        groups: Ranks of each group, in the order of their places on the axis.
    """

    axis: str
    groups: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Processes of a group."""
        return len(self.groups[0])

    def members(self) -> dict[int, tuple[int, int]]:
        """Rank -> (index of its group, its place in it)."""
        return {
            rank: (index, place)
            for index, group in enumerate(self.groups)
            for place, rank in enumerate(group)
        }

    def machines(self, per_machine: int) -> int:
        """Machines that the group on the most of them is spread over."""
        return max(len({rank // per_machine for rank in group}) for group in self.groups)


def axis_groups(parallel: ParallelConfig) -> list[AxisGroups]:
    """The groups of each axis, also of those of size 1.

    Raises:
        ValueError: The degrees do not fit together; the message says which.
    """
    grid = make_grid(parallel)
    found = []
    for axis in AXES:
        groups: list[tuple[int, ...]] = []
        seen: set[int] = set()
        for rank in range(parallel.world_size):
            if rank not in seen:
                groups.append(tuple(grid.group(axis, rank)))
                seen.update(groups[-1])
        found.append(AxisGroups(axis, tuple(groups)))
    return found


def layout_text(axes: Sequence[AxisGroups], per_machine: int) -> str:
    """A table: size of every axis, its first group, and whether that leaves a machine."""
    rows = [("axis", "size", "groups", "first group", "where")]
    for axis in axes:
        machines = axis.machines(per_machine)
        where = "inside a machine" if machines == 1 else f"across {machines} machines"
        first = axis.groups[0]
        shown = " ".join(map(str, first[:_SHOWN])) + (" ..." if len(first) > _SHOWN else "")
        rows.append(
            (
                f"{AXES[axis.axis]} ({axis.axis})",
                str(axis.size),
                str(len(axis.groups)),
                shown,
                where if axis.size > 1 else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )

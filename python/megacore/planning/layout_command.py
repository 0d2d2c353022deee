"""`megacore layout`: which processes are together on each axis, and what they divide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megacore.config.parser import parse
from megacore.errors import EXIT_OK, UsageError
from megacore.parallel.config import ParallelConfig
from megacore.planning.layout_config import LayoutConfig


def main(argv: list[str]) -> int:
    """Entry of the verb `layout`; returns the exit code."""
    parsed = parse(
        [LayoutConfig, ParallelConfig],
        argv,
        prog="megacore layout",
        description="Show which processes are together on each axis, and what they divide.",
    )
    config: LayoutConfig = parsed.configs[LayoutConfig]
    parallel: ParallelConfig = parsed.configs[ParallelConfig]
    show(config, replace(parallel, world_size=config.world_size))
    return EXIT_OK


def show(config: LayoutConfig, parallel: ParallelConfig) -> None:
    """Prints the groups and writes the pictures that were asked for.

    Raises:
        UsageError: The degrees do not fit together, or a file cannot be written.
    """
    from megacore.planning.layout_picture import draw_layout
    from megacore.planning.layout_text import axis_groups, layout_text
    from megacore.planning.picture import svg, write_png

    try:
        axes = axis_groups(parallel)
    except ValueError as error:
        raise UsageError(str(error)) from error
    axes = [axis for axis in axes if config.axis in (None, axis.axis)]
    print(layout_text(axes, config.processes_per_machine))
    picture = draw_layout(parallel, axes, per_machine=config.processes_per_machine)
    try:
        if config.svg:
            Path(config.svg).write_text(svg(picture), encoding="utf-8")
        if config.png:
            write_png(picture, Path(config.png))
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error

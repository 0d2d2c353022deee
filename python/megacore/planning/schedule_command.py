"""`megacore schedule`: makes, checks, simulates and draws a pipeline schedule."""

from __future__ import annotations

from pathlib import Path

from megacore.config.parser import parse
from megacore.errors import EXIT_OK, UsageError
from megacore.planning.config import ScheduleConfig


def main(argv: list[str]) -> int:
    """Entry of the verb `schedule`; returns the exit code."""
    parsed = parse(
        [ScheduleConfig],
        argv,
        prog="megacore schedule",
        description="Make a pipeline schedule, check it, simulate it and draw it.",
    )
    config: ScheduleConfig = parsed.configs[ScheduleConfig]
    config.check()
    if config.compare:
        from megacore.planning.comparison import compare, table

        print(table(compare(config)))
        return EXIT_OK
    show(config)
    return EXIT_OK


def show(config: ScheduleConfig) -> None:
    """Writes what was asked for, and prints the summary.

    Raises:
        UsageError: The schedule cannot be made or run, or a file cannot be written.
    """
    from megacore._C import pipeline
    from megacore.planning.picture import draw, svg, write_png
    from megacore.planning.schedules import make_plan
    from megacore.planning.text_view import text_timeline

    plan = make_plan(config)
    files = [name for name in (config.svg, config.png, config.trace, config.csv) if name]
    if config.text or not files:
        print(text_timeline(plan.simulation, plan.schedule.placement, config.width))
        print()
    print(f"{plan.title} ({plan.origin})")
    print(plan.summary)
    try:
        if config.svg:
            Path(config.svg).write_text(svg(draw(plan)), encoding="utf-8")
        if config.png:
            write_png(draw(plan), Path(config.png))
        if config.trace:
            text = pipeline.trace_json(plan.schedule.placement, {"simulated": plan.simulation})
            Path(config.trace).write_text(text, encoding="utf-8")
        if config.csv:
            Path(config.csv).write_text(pipeline.to_csv(plan.schedule), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
    for name in files:
        print(f"wrote {name}")

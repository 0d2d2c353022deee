"""`megacore plan validate`: the table of published runs and what the planner says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.errors import EXIT_OK, Fault


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """What to show of the validation."""

    GROUP: ClassVar[str] = "validate"

    json: bool = flag("--json", default=False, help="print JSON")
    scaling: str | None = flag(
        "--scaling",
        default=None,
        metavar="FILE",
        help=".svg or .png: published weak and strong scaling, and the estimates",
    )

    def faults(self) -> Iterator[Fault]:
        """Values outside their ranges."""
        yield from value_faults(self)


def main(argv: list[str]) -> int:
    """Entry of `megacore plan validate`; returns the exit code."""
    parsed = parse(
        [ValidateConfig],
        argv,
        prog="megacore plan validate",
        description="Compare estimates with the runs that others published.",
    )
    config: ValidateConfig = parsed.configs[ValidateConfig]
    from megacore.planning.validation import format_validation, validate

    report = validate()
    print(json.dumps(asdict(report), indent=2) if config.json else format_validation(report))
    if config.scaling:
        from megacore.planning.plan_picture import write_picture
        from megacore.planning.validate_picture import published_scaling

        write_picture(published_scaling(), config.scaling)
    return EXIT_OK

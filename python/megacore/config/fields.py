"""Declaring a command-line flag as a field of a typed, frozen configuration dataclass.

A component describes its settings once:

    @dataclass(frozen=True, kw_only=True)
    class ModelConfig:
        GROUP: ClassVar[str] = "network size"
        num_layers: int | None = flag("--num-layers", default=None, help="depth of the stack")

and the command line, the YAML/TOML keys, the help page and the report of origins all follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

METADATA_KEY = "megacore_flag"


@dataclass(frozen=True)
class FlagSpec:
    """How a field appears on the command line.

    Attributes:
        names: Option strings, the first is the one shown in messages.
        help: One sentence; units where there are any.
        choices: Allowed values, or None.
        nargs: As in argparse ("*", "+"), or None for one value.
        metavar: Placeholder in the help page, or None.
        bounds: Interval that numbers must lie in, such as "[0, 1)" or "[1, inf)", or None.
        repeatable: A tuple whose flag may be given several times, the values adding up; otherwise
            the last one wins.
    A bool field is a switch: default False gives store_true, default True gives store_false
    (`--no-...` and `--disable-...` flags whose field holds the positive meaning).
    """

    names: tuple[str, ...]
    help: str
    choices: tuple[Any, ...] | None = None
    nargs: str | None = None
    metavar: str | None = None
    bounds: str | None = None
    repeatable: bool = False


def flag(
    *names: str,
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    nargs: str | None = None,
    metavar: str | None = None,
    bounds: str | None = None,
    repeatable: bool = False,
) -> Any:
    """A dataclass field that is set by the option strings `names`.

    Args:
        names: Option strings such as "--num-layers"; underscores are accepted for dashes anyway.
            One name without dashes makes a positional argument.
        default: Value when the flag is absent. Must be immutable (use tuples for lists).
        help: One sentence for `--help` and the reference page.
        choices: Allowed values.
        nargs: "*" or "+" for a field that holds a tuple.
        metavar: Placeholder shown in the help page.
        bounds: Interval that a number (or each of a tuple) must lie in, such as "[0, 1)".
        repeatable: Values of several uses of the flag add up (tuples only).
    """
    spec = FlagSpec(
        names,
        help,
        tuple(choices) if choices is not None else None,
        nargs,
        metavar,
        bounds,
        repeatable,
    )
    return field(default=default, metadata={METADATA_KEY: spec})


def flag_fields(config: type) -> list[tuple[Field[Any], FlagSpec]]:
    """The fields of a configuration dataclass that are flags, in order of declaration."""
    return [(f, f.metadata[METADATA_KEY]) for f in fields(config) if METADATA_KEY in f.metadata]

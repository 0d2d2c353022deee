"""Settings: every flag of some configuration dataclasses in one list, with its type and place."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megacore.config.faults import fault
from megacore.config.fields import flag_fields
from megacore.config.values import ValueType, describe_bounds, inside, value_type
from megacore.errors import ConfigError, Fault


@dataclass(frozen=True)
class Setting:
    """One thing that can be set on a command line or in a file.

    Attributes:
        dest: Name of the dataclass field, and of the key in reports.
        names: Option strings, or one name without dashes for a positional argument.
        group: Heading it is listed under.
        value_type: Type of its value.
        default: Value when nothing sets it.
        choices: Allowed values, or None.
        nargs: "*", "+" or None.
        bounds: Interval for numbers, or None.
        help: One sentence.
        metavar: Placeholder in the help page, or None.
        config: The dataclass it belongs to, or None for a flag that only the table knows.
        repeatable: Whether values of several uses of the flag add up.
    """

    dest: str
    names: tuple[str, ...]
    group: str
    value_type: ValueType
    default: Any
    choices: tuple[Any, ...] | None
    nargs: str | None
    bounds: str | None
    help: str
    metavar: str | None
    config: type | None
    repeatable: bool = False

    @property
    def flag(self) -> str:
        """The name that messages use."""
        return self.names[0]

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return (
            self.value_type.base is bool and not self.value_type.many and self.default is not None
        )

    @property
    def is_positional(self) -> bool:
        """Whether it is an argument without a flag."""
        return not self.flag.startswith("-")

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.choices is not None:
            return ", ".join(str(c) for c in self.choices)
        words = self.value_type.describe()
        return f"{words}, {describe_bounds(self.bounds)}" if self.bounds else words


@functools.cache
def settings_of(config: type) -> tuple[Setting, ...]:
    """The settings of one configuration dataclass, in order of declaration."""
    hints = typing.get_type_hints(config)
    group = getattr(config, "GROUP", config.__name__)
    return tuple(
        Setting(
            dest=field.name,
            names=spec.names,
            group=group,
            value_type=value_type(hints[field.name]),
            default=field.default,
            choices=spec.choices,
            nargs=spec.nargs,
            bounds=spec.bounds,
            help=spec.help,
            metavar=spec.metavar,
            config=config,
            repeatable=spec.repeatable,
        )
        for field, spec in flag_fields(config)
    )


def all_settings(configs: Iterable[type]) -> list[Setting]:
    """The settings of several dataclasses.

    Raises:
        ValueError: Two of them share a flag or a field name (a programming mistake).
    """
    result = [setting for config in configs for setting in settings_of(config)]
    seen: set[str] = set()
    for setting in result:
        for name in (setting.dest, *setting.names):
            if name in seen and not (name == setting.flag and setting.is_positional):
                raise ValueError(f"{name} is declared twice")
            seen.add(name)
    return result


def out_of_bounds(setting: Setting, value: Any) -> Fault | None:
    """The fault of a value that is not among the choices or outside the interval, or None."""
    values: Sequence[Any] = value if isinstance(value, tuple) else (value,)
    for one in values:
        if one is None:
            continue
        if setting.choices is not None and one not in setting.choices:
            return fault("MC0004", {setting.flag: one}, allowed=setting.allowed)
        if setting.bounds is not None and not inside(one, setting.bounds):
            return fault("MC0005", {setting.flag: one}, allowed=setting.allowed)
    return None


def refuse(faults: Iterable[Fault]) -> None:
    """Raises all faults as one error, if there are any.

    Raises:
        ConfigError: There is at least one.
    """
    found = tuple(faults)
    if found:
        raise ConfigError(found)


def value_faults(config: Any) -> Iterator[Fault]:
    """Faults of single values of an instance: choices and intervals of its flags."""
    for setting in settings_of(config.__class__):
        found = out_of_bounds(setting, getattr(config, setting.dest))
        if found is not None:
            yield found

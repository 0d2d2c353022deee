"""From the text of a command line, or a scalar of a file, to the typed value of a setting."""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ValueType:
    """The type of one setting.

    Attributes:
        base: int, float, str or bool; of the elements when `many`.
        many: Whether the setting holds a tuple.
        optional: Whether None is a value.
    """

    base: type
    many: bool = False
    optional: bool = False

    def describe(self) -> str:
        """What is expected, in words."""
        noun = {int: "an integer", float: "a number", str: "text", bool: "true or false"}[self.base]
        return f"a list, each item {noun}" if self.many else noun


def value_type(annotation: Any) -> ValueType:
    """The `ValueType` of a dataclass field's resolved annotation.

    Raises:
        TypeError: The annotation is not one of the supported forms (a programming mistake).
    """
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        if len(members) != 1:
            raise TypeError(f"a flag cannot have the type {annotation}")
        annotation = members[0]
    many = typing.get_origin(annotation) is tuple
    if many:
        annotation = typing.get_args(annotation)[0]
    if annotation not in (int, float, str, bool):
        raise TypeError(f"a flag cannot have the type {annotation}")
    return ValueType(annotation, many, optional)


def convert(value: Any, base: type) -> Any:
    """One value as `base`.

    Args:
        value: Text of the command line, or a scalar of a YAML or TOML file.
        base: int, float, str or bool.

    Raises:
        ValueError: The value does not mean a `base`.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
            return value.lower() in ("true", "1")
        raise ValueError("expected true or false")
    if base is str and (isinstance(value, str) or is_number):
        return str(value)
    if base is int and isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return int(value)
    if base is int and isinstance(value, int) and is_number:
        return value
    if base is float and (isinstance(value, str) or is_number):
        number = float(value)
        if not math.isnan(number):
            return number
    raise ValueError(f"expected {ValueType(base).describe()}")


_INTERVAL = re.compile(r"([\[(])\s*([^,\s]+)\s*,\s*([^\])\s]+)\s*([\])])")


def inside(value: float, bounds: str) -> bool:
    """Whether a number lies in an interval written as "[0, 1)"; NaN never does.

    Raises:
        ValueError: `bounds` is not an interval (a programming mistake).
    """
    match = _INTERVAL.fullmatch(bounds.strip())
    if match is None:
        raise ValueError(f"{bounds!r} is not an interval")
    opening, low, high, closing = match.groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    below = value <= float(high) if closing == "]" else value < float(high)
    return above and below


def describe_bounds(bounds: str) -> str:
    """An interval in words: "[1, inf)" is "at least 1"."""
    match = _INTERVAL.fullmatch(bounds.strip())
    if match is None:
        raise ValueError(f"{bounds!r} is not an interval")
    opening, low, high, closing = match.groups()
    parts = []
    if float(low) != -math.inf:
        parts.append(f"at least {low}" if opening == "[" else f"greater than {low}")
    if float(high) != math.inf:
        parts.append(f"at most {high}" if closing == "]" else f"less than {high}")
    return " and ".join(parts)

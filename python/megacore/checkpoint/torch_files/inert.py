"""What a pickle names but nobody needs to construct: names and records without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# How much of a text from a file goes into a message.
_SHOWN = 80


@dataclass(frozen=True)
class Symbol:
    """The name of a class, function or constant; it was never imported.

    Attributes:
        kind: Full name, such as "megatron.core.enums.ModelType".
    """

    kind: str


@dataclass(eq=False, slots=True)
class Record:
    """An object of some class, reduced to the data that the file holds about it.

    An enumeration member is a record with its value as the only argument.

    Attributes:
        kind: Full name of its class, such as "argparse.Namespace".
        fields: Its attributes.
        args: What its constructor would be called with.
        state: State that is not a dictionary of attributes, or None.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    state: Any = None

    @property
    def name(self) -> str:
        """Name of its class without the module."""
        return self.kind.rpartition(".")[2]


def shown(value: object) -> str:
    """A value from a file for a message; containers, which may be endless, by their type only."""
    if value is None or type(value) in (bool, int, float):
        return str(value)
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN])
    if type(value) is tuple and len(value) <= 8 and all(type(item) is int for item in value):
        return str(value)
    return f"a {type(value).__name__}"

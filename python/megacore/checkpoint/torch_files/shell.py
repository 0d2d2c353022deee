"""An object that exists before its contents do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megacore.errors import UnsafeFileError

_MISSING = object()


class Shell:
    """Stands for a value that a later BUILD opcode completes.

    Args:
        what: What it will be, for messages.
        finish: Makes the value of the state.
        default: The value without any state.
    """

    def __init__(self, what: str, finish: Callable[[Any], Any], default: Any = _MISSING) -> None:
        self.what = what
        self._finish = finish
        self._value = default

    def build(self, state: Any) -> Any:
        """Makes the value and returns it."""
        self._value = self._finish(state)
        return self._value

    def finished(self) -> Any:
        """The value.

        Raises:
            UnsafeFileError: It was not built yet.
        """
        if self._value is _MISSING:
            raise UnsafeFileError(f"a {self.what} is used before it has contents")
        return self._value

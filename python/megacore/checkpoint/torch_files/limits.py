"""How much a file may ask for, whatever it says."""

from __future__ import annotations

from dataclasses import dataclass

from megacore.errors import UnsafeFileError


@dataclass(frozen=True)
class Limits:
    """Bounds on what a pickle may build; far above what checkpoints hold.

    Attributes:
        pickle_bytes: Length of one pickle.
        objects: Containers, records, tensors and memo entries, and items copied by constructors.
        depth: How deep containers may nest.
        integer_bytes: Size of one integer.
        key_items: Leaves of one tuple that is a dictionary key or set element.
        expansion: Items seen by a walk that visits shared containers again each time, per object.
    """

    pickle_bytes: int = 1 << 30
    objects: int = 1 << 25
    depth: int = 200
    integer_bytes: int = 512
    key_items: int = 64
    expansion: int = 64


DEFAULT_LIMITS = Limits()


class Budget:
    """Counts the objects that one pickle has asked for."""

    def __init__(self, limits: Limits) -> None:
        self._left = limits.objects
        self.limits = limits

    def charge(self, count: int) -> None:
        """Takes `count` objects.

        Raises:
            UnsafeFileError: There are none left.
        """
        self._left -= count
        if self._left < 0:
            raise UnsafeFileError(f"more than {self.limits.objects} objects are asked for")

    @property
    def spent(self) -> int:
        """Objects taken so far."""
        return self.limits.objects - self._left

"""How much a file may ask for, whatever it says."""

from __future__ import annotations

from dataclasses import dataclass

from megacore.errors import UnsafeFileError


@dataclass(frozen=True)
class Limits:
    """Bounds on what a pickle may build; far above what checkpoints hold.

    Attributes:
        pickle_bytes: Length of one pickle.
        objects: Containers, records, tensors and items copied by constructors; also entries of
            the memo. In a short pickle also bounded by its length.
        depth: How deep containers may nest.
        integer_bytes: Size of one integer.
        key_items: Leaves of one tuple that is a dictionary key or set element.
        expansion: Items seen by a walk that visits shared containers again each time, per object.
    """

    pickle_bytes: int = 1 << 30
    objects: int = 1 << 24
    depth: int = 200
    integer_bytes: int = 512
    key_items: int = 64
    expansion: int = 64


DEFAULT_LIMITS = Limits()


# Objects that any pickle may ask for, and those per byte; more than honest ones do.
_SMALL = 1 << 16
_PER_BYTE = 2

# What larger things cost, in objects of about 64 bytes.
RECORD_COST = 2
SET_COST = 4
TENSOR_COST = 16

# Bytes whose copy counts as one object.
_COPIED_BYTES = 8


class Budget:
    """Counts the objects that one pickle has asked for.

    Args:
        limits: Bounds for any pickle.
        num_bytes: Length of this one.

    Attributes:
        most: Objects in all.
    """

    def __init__(self, limits: Limits, num_bytes: int) -> None:
        self.most = min(limits.objects, _SMALL + _PER_BYTE * num_bytes)
        self._left = self.most
        self.limits = limits

    def charge(self, count: int) -> None:
        """Takes `count` objects.

        Raises:
            UnsafeFileError: There are none left.
        """
        self._left -= count
        if self._left < 0:
            raise UnsafeFileError(f"asks for more than {self.most} objects")

    def charge_copy(self, num_bytes: int) -> None:
        """Takes what a copy of bytes costs."""
        self.charge(num_bytes // _COPIED_BYTES)

    @property
    def spent(self) -> int:
        """Objects taken so far."""
        return self.most - self._left

"""Checks against values that are small in the file and large to handle.

A pickle may refer to one container many times, so a few bytes can stand for a tree that no
recursive program gets to the end of, and a dictionary key may be as slow to hash as it likes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from megacore.checkpoint.torch_files.inert import Record, Symbol
from megacore.checkpoint.torch_files.limits import Budget, Limits
from megacore.errors import UnsafeFileError

_LEAVES = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, bytearray, Symbol, torch.Tensor,
        torch.dtype, torch.device, torch.layout, torch.memory_format, np.ndarray,
    }
)  # fmt: skip
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, torch.Size, set, frozenset, Record})

_SIMPLE_KEYS = frozenset(
    {type(None), bool, int, float, str, bytes, Symbol, Record, torch.dtype, torch.device}
)

# Distinct tuple keys that may share a hash. The hash of a tuple of integers can be aimed at.
_MAX_COLLISIONS = 64


class KeyCheck:
    """Decides which values may be dictionary keys or set elements."""

    def __init__(self, limits: Limits) -> None:
        self._max_items = limits.key_items
        self._by_hash: dict[int, Any] = {}
        self._collisions = 0

    def check(self, key: Any) -> None:
        """Refuses keys that cannot be hashed in time that their size explains.

        Raises:
            UnsafeFileError: The key is refused.
        """
        kind = type(key)
        if kind is tuple or kind is torch.Size:
            self._count(key, self._max_items)
            first = self._by_hash.setdefault(hash(key), key)
            if first is not key and first != key:
                self._collisions += 1
                if self._collisions > _MAX_COLLISIONS:
                    raise UnsafeFileError("dictionary keys made to have the same hash")
        elif kind not in _SIMPLE_KEYS or (kind is int and key.bit_length() > 60):
            raise UnsafeFileError(f"a {kind.__name__} as dictionary key or set element")

    def _count(self, key: tuple, left: int) -> int:
        for item in key:
            left -= 1
            if left < 0:
                raise UnsafeFileError(f"a dictionary key of more than {self._max_items} items")
            if type(item) is tuple or type(item) is torch.Size:
                left = self._count(item, left)
            elif type(item) not in _SIMPLE_KEYS:
                raise UnsafeFileError(f"a {type(item).__name__} in a dictionary key")
        return left


def _children(value: Any) -> Iterable[Any]:
    kind = type(value)
    if kind is Record:
        return (value.fields, value.args, value.state)
    if kind is dict or kind is OrderedDict:
        records = [key for key in value if type(key) is Record]
        return [*value.values(), *records] if records else value.values()
    return value


def check_result(value: Any, budget: Budget) -> None:
    """Checks a finished value: only known types, no cycle, bounded depth and size as a tree.

    Raises:
        UnsafeFileError: It is refused.
    """
    limits = budget.limits
    most = limits.expansion * budget.spent + (1 << 20)
    # Containers that are complete: number of items below them, and depth. Empty ones need no entry.
    known: dict[int, tuple[int, int]] = {}
    active: set[int] = set()
    todo = [value]
    while todo:
        current = todo[-1]
        kind = type(current)
        identity = id(current)
        if kind not in _CONTAINERS:
            if kind not in _LEAVES and not isinstance(current, np.generic | np.dtype):
                raise UnsafeFileError(f"a bare {kind.__name__} is left in the value")
            todo.pop()
        elif identity in known:
            todo.pop()
        elif identity not in active:
            inner = [child for child in _children(current) if type(child) not in _LEAVES]
            if not inner and not current:
                todo.pop()
                continue
            active.add(identity)
            if any(id(child) in active for child in inner):
                raise UnsafeFileError(f"a {kind.__name__} contains itself")
            todo.extend(child for child in inner if id(child) not in known)
        else:
            todo.pop()
            active.discard(identity)
            below = [known.get(id(child), (0, 0)) for child in _children(current)]
            size = len(below) + sum(items for items, _ in below)
            depth = 1 + max((levels for _, levels in below), default=0)
            if size > most:
                raise UnsafeFileError("shared containers that expand to more than they may")
            if depth > limits.depth:
                raise UnsafeFileError(f"containers nested deeper than {limits.depth}")
            known[identity] = (size, depth)

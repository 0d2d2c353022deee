"""The virtual machine of pickles, without the power to import, call or construct anything itself.

Opcodes build numbers, strings and containers here. Names are looked up in the table of `allowed`,
whose entries are data or functions of this package; everything else is refused. What comes out
are plain values, tensors, and inert `Record`s and `Symbol`s.

Source: the opcode documentation in CPython's Lib/pickletools.py (protocols 0 to 5).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from mmap import mmap
from typing import Any

from megacore.checkpoint.torch_files.allowed import construct
from megacore.checkpoint.torch_files.checks import KeyCheck, check_result
from megacore.checkpoint.torch_files.instructions import TABLE
from megacore.checkpoint.torch_files.limits import DEFAULT_LIMITS, RECORD_COST, Budget, Limits
from megacore.checkpoint.torch_files.opcodes import NAMES
from megacore.checkpoint.torch_files.shell import Shell
from megacore.errors import CheckpointError, UnsafeFileError

# What a persistent identifier, such as that of a storage, stands for.
Persistent = Callable[[Any], Any]


def load_pickle(
    data: bytes | mmap,
    *,
    label: str,
    persistent: Persistent | None = None,
    start: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Any, int]:
    """Reads one pickle.

    Args:
        data: Bytes that hold it.
        label: What messages call them: file and record.
        persistent: Answers persistent identifiers; None refuses them.
        start: Where it begins.
        limits: Bounds on what it may build.

    Returns:
        The value and the position after it.

    Raises:
        UnsafeFileError: It holds what is not allowed; the message says where.
        CheckpointError: It is damaged.
    """
    machine = Machine(data, label, persistent, start, limits)
    value = machine.run()
    try:
        check_result(value, machine.budget)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{label}: {error}") from error
    return value, machine.at


class Machine:
    """The state of reading one pickle; `run` may be called once."""

    def __init__(
        self,
        data: bytes | mmap,
        label: str,
        persistent: Persistent | None,
        start: int,
        limits: Limits,
    ) -> None:
        self.data = data
        self.at = start
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = Budget(limits, len(data) - start)
        self.keys = KeyCheck(limits)
        self.persistent = persistent
        self.stopped = False
        self._label = label
        self._max_memo = self.budget.most

    def run(self) -> Any:
        """Executes opcodes up to STOP and returns the value they leave."""
        data, table = self.data, TABLE
        position = self.at
        try:
            while not self.stopped:
                position = self.at
                opcode = data[position]
                self.at = position + 1
                handler = table[opcode]
                if handler is None:
                    raise UnsafeFileError("this opcode is not allowed")
                handler(self)
            if len(self.stack) != 1 or self.marks:
                raise ValueError(f"{len(self.stack)} values and {len(self.marks)} marks are left")
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{self._where(position)}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{self._where(position)}: {error}") from error
        except (
            ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error,
            RuntimeError,
        ) as error:  # fmt: skip
            raise CheckpointError(
                f"{self._where(position)}: the pickle is damaged: {error or type(error).__name__}"
            ) from error
        return self.stack.pop()

    def _where(self, position: int) -> str:
        name = NAMES[self.data[position]] if position < len(self.data) else "end of the data"
        return f"{self._label}: position {position}: {name}"

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.at + count
        if end > len(self.data):
            raise ValueError(f"expected {count} more bytes, found {len(self.data) - self.at}")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def line(self) -> bytes:
        """The bytes up to the next newline, which is skipped."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise ValueError("a line does not end")
        piece = self.data[self.at : end]
        self.at = end + 1
        return piece

    def pop_mark(self) -> list[Any]:
        """What is on the stack above the last mark, which is removed."""
        items = self.stack
        if not self.marks:
            raise ValueError("there is no mark on the stack")
        self.stack = self.marks.pop()
        return items

    def put(self, index: int) -> None:
        """Remembers the top of the stack."""
        self.memo[index] = self.stack[-1]
        if len(self.memo) > self._max_memo:
            raise UnsafeFileError(f"remembers more than {self._max_memo} values")

    def get(self, index: int) -> None:
        """Pushes what was remembered."""
        value = self.memo[index]
        self.stack.append(value.finished() if type(value) is Shell else value)

    def push_object(self, value: Any, cost: int = 1) -> None:
        """Pushes something that takes memory."""
        self.budget.charge(cost)
        self.stack.append(value)

    def extend(self, items: list[Any]) -> None:
        """Adds to the list on top of the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise UnsafeFileError(f"items for a {type(target).__name__} instead of a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Adds keys and values, in turn, to the dictionary on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict and type(target) is not OrderedDict:
            raise UnsafeFileError(f"keys for a {type(target).__name__} instead of a dictionary")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key in items[::2]:
            if type(key) is not str:
                self.keys.check(key)
        target.update(zip(items[::2], items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        """Adds to the set on top of the stack."""
        target = self.stack[-1]
        if type(target) is not set:
            raise UnsafeFileError(f"elements for a {type(target).__name__} instead of a set")
        for item in items:
            self.keys.check(item)
        target.update(items)

    def call(self, function: Any, args: Any) -> None:
        """Pushes what a name of the table makes of arguments."""
        if type(args) is not tuple:
            raise UnsafeFileError(f"arguments must be a tuple, found {type(args).__name__}")
        self.budget.charge(RECORD_COST)
        self.stack.append(construct(function, args, self.budget, self.keys))

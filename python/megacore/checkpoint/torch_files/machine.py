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

from megacore.checkpoint.torch_files.allowed import Shell, build, construct, resolve
from megacore.checkpoint.torch_files.checks import KeyCheck, check_result
from megacore.checkpoint.torch_files.limits import DEFAULT_LIMITS, Budget, Limits
from megacore.checkpoint.torch_files.opcodes import NAMES, decode_line, unescape
from megacore.errors import CheckpointError, UnsafeFileError

# What a persistent identifier, such as that of a storage, stands for.
Persistent = Callable[[Any], Any]

_LITTLE = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}
_UINT64 = struct.Struct("<Q")
_INT32 = struct.Struct("<i")
_DOUBLE = struct.Struct(">d")

# The result is not used.
Handler = Callable[["Machine"], object]


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
        self.budget = Budget(limits)
        self.keys = KeyCheck(limits)
        self.persistent = persistent
        self.stopped = False
        self._label = label

    def run(self) -> Any:
        """Executes opcodes up to STOP and returns the value they leave."""
        data, table = self.data, _TABLE
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
        except (
            ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error,
            RecursionError,
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
        self.budget.charge(1)
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Pushes what was remembered."""
        value = self.memo[index]
        self.stack.append(value.finished() if type(value) is Shell else value)

    def push_object(self, value: Any) -> None:
        """Pushes something that takes memory."""
        self.budget.charge(1)
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
        self.budget.charge(1)
        self.stack.append(construct(function, args, self.budget, self.keys))


def _global(machine: Machine, module: Any, name: Any) -> None:
    if type(module) is not str or type(name) is not str:
        raise UnsafeFileError("a name must consist of two strings")
    machine.push_object(resolve(module, name))


def _long(machine: Machine, size: int) -> None:
    if size > machine.budget.limits.integer_bytes:
        raise UnsafeFileError(f"an integer of {size} bytes")
    machine.stack.append(int.from_bytes(machine.take(size), "little", signed=True))


def _decimal(machine: Machine, text: bytes) -> int:
    if len(text) > machine.budget.limits.integer_bytes:
        raise UnsafeFileError(f"an integer of {len(text)} digits")
    return int(text)


def _int(machine: Machine) -> None:
    text = machine.line()
    booleans = {b"00": False, b"01": True}
    machine.stack.append(booleans[text] if text in booleans else _decimal(machine, text))


def _put(machine: Machine) -> None:
    machine.put(_decimal(machine, machine.line()))


def _inst(machine: Machine) -> None:
    _global(machine, decode_line(machine.line()), decode_line(machine.line()))
    function = machine.stack.pop()
    machine.call(function, tuple(machine.pop_mark()))


def _obj(machine: Machine) -> None:
    function, *args = machine.pop_mark()
    machine.call(function, tuple(args))


def _newobj_ex(machine: Machine) -> None:
    keywords, args, function = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    if keywords != {}:
        raise UnsafeFileError("a constructor with keyword arguments")
    machine.call(function, args)


def _reduce(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.call(machine.stack.pop(), args)


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    _global(machine, machine.stack.pop(), name)


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise UnsafeFileError("a persistent identifier where there can be none")
    machine.push_object(machine.persistent(machine.stack.pop()))


def _build(machine: Machine) -> None:
    state = machine.stack.pop()
    machine.stack[-1] = build(machine.stack[-1], state, machine.budget)


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _dict(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.push_object({})
    machine.set_items(items)


def _frozenset(machine: Machine) -> None:
    items = machine.pop_mark()
    for item in items:
        machine.keys.check(item)
    machine.push_object(frozenset(items))


def _tuple(count: int) -> Handler:
    def handler(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError("the stack is empty")
        stack[-count:] = [tuple(stack[-count:])]
        machine.budget.charge(1)

    return handler


def _mark(machine: Machine) -> None:
    if len(machine.marks) >= 2 * machine.budget.limits.depth:
        raise UnsafeFileError(f"more than {len(machine.marks)} marks at once")
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _stop(machine: Machine) -> None:
    machine.stopped = True


def _protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if version > 5:
        raise CheckpointError(f"protocol {version} is not known")


def _text(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str | bytes:
    """A string of Python 2, which is text or bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _sized(width: int, convert: Callable[[bytes], Any] | None = None) -> Handler:
    """Bytes with their length before them."""
    layout = _LITTLE.get(width, _UINT64)

    def handler(machine: Machine) -> None:
        raw = machine.take(layout.unpack(machine.take(width))[0])
        machine.stack.append(convert(raw) if convert else raw)

    return handler


def _number(layout: struct.Struct, then: Callable[[Machine, int], None]) -> Handler:
    """A number in the data, and what happens with it."""

    def handler(machine: Machine) -> None:
        then(machine, layout.unpack(machine.take(layout.size))[0])

    return handler


def _push(machine: Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(value: Any) -> Handler:
    return lambda machine: machine.stack.append(value)


_HANDLERS: dict[str, Handler] = {
    "PROTO": _protocol,
    "FRAME": lambda machine: machine.take(8),
    "STOP": _stop,
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine: machine.pop_mark(),
    "DUP": lambda machine: machine.push_object(machine.stack[-1]),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "INT": _int,
    "LONG": lambda m: m.stack.append(_decimal(m, m.line().removesuffix(b"L"))),
    "BININT": _number(_INT32, _push),
    "BININT1": _number(_LITTLE[1], _push),
    "BININT2": _number(_LITTLE[2], _push),
    "LONG1": _number(_LITTLE[1], _long),
    "LONG4": _number(_LITTLE[4], _long),
    "FLOAT": lambda m: m.stack.append(float(m.line())),
    "BINFLOAT": _number(_DOUBLE, _push),
    "STRING": lambda m: m.stack.append(_old_text(unescape(m.line()))),
    "BINSTRING": _sized(4, _old_text),
    "SHORT_BINSTRING": _sized(1, _old_text),
    "UNICODE": lambda m: m.stack.append(m.line().decode("raw-unicode-escape")),
    "BINUNICODE": _sized(4, _text),
    "SHORT_BINUNICODE": _sized(1, _text),
    "BINUNICODE8": _sized(8, _text),
    "BINBYTES": _sized(4),
    "SHORT_BINBYTES": _sized(1),
    "BINBYTES8": _sized(8),
    "BYTEARRAY8": _sized(8, bytearray),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine: machine.push_object([]),
    "EMPTY_DICT": lambda machine: machine.push_object({}),
    "EMPTY_SET": lambda machine: machine.push_object(set()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine: machine.push_object(tuple(machine.pop_mark())),
    "LIST": lambda machine: machine.push_object(machine.pop_mark()),
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "APPEND": lambda machine: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine: machine.extend(machine.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: machine.set_items(machine.pop_mark()),
    "ADDITEMS": lambda machine: machine.add_items(machine.pop_mark()),
    "GET": lambda machine: machine.get(_decimal(machine, machine.line())),
    "BINGET": _number(_LITTLE[1], Machine.get),
    "LONG_BINGET": _number(_LITTLE[4], Machine.get),
    "PUT": _put,
    "BINPUT": _number(_LITTLE[1], Machine.put),
    "LONG_BINPUT": _number(_LITTLE[4], Machine.put),
    "MEMOIZE": lambda machine: machine.put(len(machine.memo)),
    "GLOBAL": lambda m: _global(m, decode_line(m.line()), decode_line(m.line())),
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}

_TABLE: list[Handler | None] = [_HANDLERS.get(name) for name in NAMES]

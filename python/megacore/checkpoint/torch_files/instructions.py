"""What each opcode of a pickle does with the machine.

Source: the opcode documentation in CPython's Lib/pickletools.py (protocols 0 to 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megacore.checkpoint.torch_files.allowed import build, resolve
from megacore.checkpoint.torch_files.limits import SET_COST
from megacore.checkpoint.torch_files.opcodes import NAMES, decode_line, unescape
from megacore.errors import CheckpointError, UnsafeFileError

if TYPE_CHECKING:
    from megacore.checkpoint.torch_files.machine import Machine

_LITTLE = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I")}
_UINT64 = struct.Struct("<Q")
_INT32 = struct.Struct("<i")
_DOUBLE = struct.Struct(">d")

# The result is not used.
Handler = Callable[["Machine"], object]


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


def _put(machine: Machine, index: int) -> None:
    machine.put(index)


def _get(machine: Machine, index: int) -> None:
    machine.get(index)


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
    machine.push_object(frozenset(items), SET_COST + len(items))


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


# The opcodes that make up most of a list of chunks, written out.


def _short_text(machine: Machine) -> None:
    at = machine.at
    end = at + 1 + machine.data[at]
    if end > len(machine.data):
        raise ValueError("a text breaks off")
    machine.at = end
    machine.stack.append(str(machine.data[at + 1 : end], "utf-8", "surrogatepass"))


def _byte(machine: Machine) -> None:
    machine.stack.append(machine.data[machine.at])
    machine.at += 1


def _short_get(machine: Machine) -> None:
    machine.get(machine.data[machine.at])
    machine.at += 1


def _short_put(machine: Machine) -> None:
    machine.put(machine.data[machine.at])
    machine.at += 1


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
    "BININT1": _byte,
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
    "SHORT_BINUNICODE": _short_text,
    "BINUNICODE8": _sized(8, _text),
    "BINBYTES": _sized(4),
    "SHORT_BINBYTES": _sized(1),
    "BINBYTES8": _sized(8),
    "BYTEARRAY8": _sized(8, bytearray),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine: machine.push_object([]),
    "EMPTY_DICT": lambda machine: machine.push_object({}),
    "EMPTY_SET": lambda machine: machine.push_object(set(), SET_COST),
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
    "BINGET": _short_get,
    "LONG_BINGET": _number(_LITTLE[4], _get),
    "PUT": lambda machine: machine.put(_decimal(machine, machine.line())),
    "BINPUT": _short_put,
    "LONG_BINPUT": _number(_LITTLE[4], _put),
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

TABLE: list[Handler | None] = [_HANDLERS.get(name) for name in NAMES]

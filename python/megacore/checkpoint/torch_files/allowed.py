"""What a pickle may do with names: look them up, call them, give objects their state.

A name is data (a dtype), a function of `makers`, or, for classes of the training systems whose
files we read, an inert `Symbol` that makes inert `Record`s.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from megacore.checkpoint.torch_files.checks import KeyCheck
from megacore.checkpoint.torch_files.inert import Record, Symbol, shown
from megacore.checkpoint.torch_files.limits import Budget
from megacore.checkpoint.torch_files.makers import MAKERS
from megacore.checkpoint.torch_files.names import (
    CONSTANTS,
    TORCH_CONSTANTS,
    full_name,
    is_storage,
    makes_records,
)
from megacore.checkpoint.torch_files.shell import Shell
from megacore.errors import UnsafeFileError


def resolve(module: str, name: str) -> Any:
    """What a name stands for.

    Raises:
        UnsafeFileError: The name is not allowed.
    """
    kind = full_name(module, name)
    if kind in TORCH_CONSTANTS:
        return TORCH_CONSTANTS[kind]
    if kind in MAKERS or kind in CONSTANTS or is_storage(kind) or makes_records(kind):
        return Symbol(kind)
    raise UnsafeFileError(f"the name {shown(kind)} is not allowed")


def construct(function: Any, args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    """What calling a name with arguments makes.

    Raises:
        UnsafeFileError: It may not be called, or not with these arguments.
    """
    if type(function) is not Symbol:
        raise UnsafeFileError(f"a call of a {type(function).__name__}")
    maker = MAKERS.get(function.kind)
    if maker is not None:
        try:
            return maker(args, budget, keys)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UnsafeFileError(f"{function.kind} with wrong arguments: {error}") from error
    if makes_records(function.kind):
        return Record(function.kind, args=args)
    raise UnsafeFileError(f"a call of {function.kind}")


def build(target: Any, state: Any, budget: Budget) -> Any:
    """Gives an object its state; returns what takes its place.

    Raises:
        UnsafeFileError: It takes no state, or not this one.
    """
    kind = type(target)
    if kind is Shell:
        try:
            return target.build(state)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnsafeFileError(f"wrong state for {target.what}: {error}") from error
    if kind is OrderedDict:
        return target  # Attributes, such as the versions that torch keeps with a state_dict.
    if kind is not Record:
        raise UnsafeFileError(f"state for a {kind.__name__}")
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    if all(part is None or type(part) is dict for part in parts):
        budget.charge(sum(len(part or ()) for part in parts))
    if all(part is None or _is_attributes(part) for part in parts):
        for part in parts:
            target.fields.update(part or {})
    else:
        target.state = state
    return target


def _is_attributes(value: Any) -> bool:
    return type(value) is dict and all(type(name) is str for name in value)

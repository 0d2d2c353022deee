"""Functions that stand for the ones that pickles call; each checks its arguments.

All take the arguments, the budget of the pickle, and the check of its dictionary keys.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from megacore.checkpoint.torch_files.checks import KeyCheck
from megacore.checkpoint.torch_files.inert import Record, Symbol, shown
from megacore.checkpoint.torch_files.limits import SET_COST, TENSOR_COST, Budget
from megacore.checkpoint.torch_files.names import TORCH_CONSTANTS, makes_records
from megacore.checkpoint.torch_files.numpy_values import ArrayState, dtype_of, scalar_of
from megacore.checkpoint.torch_files.shell import Shell
from megacore.checkpoint.torch_files.storages import rebuild_tensor
from megacore.errors import UnsafeFileError

_DEVICE = re.compile(r"[a-z]+(:[0-9]{1,4})?\Z")


def _one(args: tuple, *kinds: type) -> Any:
    """The only argument, which must be of one of these types; none: an empty one of the first."""
    if not args:
        return kinds[0]()
    if len(args) != 1 or type(args[0]) not in kinds:
        raise UnsafeFileError(
            f"expected one argument ({', '.join(kind.__name__ for kind in kinds)})"
        )
    return args[0]


def _ordered_dict(args: tuple, budget: Budget, keys: KeyCheck) -> OrderedDict:
    result: OrderedDict = OrderedDict()
    for pair in _one(args, list):
        budget.charge(1)
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise UnsafeFileError("an OrderedDict takes pairs")
        keys.check(pair[0])
        result[pair[0]] = pair[1]
    return result


def _counter(args: tuple, budget: Budget, keys: KeyCheck) -> dict:
    counts = _one(args, dict)
    budget.charge(len(counts))
    return dict(counts)


def _default_dict(args: tuple, budget: Budget, keys: KeyCheck) -> dict:
    if len(args) > 1 or not isinstance(args[0] if args else None, Symbol | None):
        raise UnsafeFileError("a defaultdict takes the name of its factory")
    return {}


def _deque(args: tuple, budget: Budget, keys: KeyCheck) -> list:
    items = _one(args[:1], tuple, list)
    if len(args) > 2 or type(args[1] if len(args) == 2 else 0) not in (int, type(None)):
        raise UnsafeFileError("a deque takes items and their largest number")
    budget.charge(len(items))
    return list(items)


def _set(args: tuple, budget: Budget, keys: KeyCheck) -> set:
    items = _one(args, list, tuple, set, frozenset)
    budget.charge(SET_COST + len(items))
    for item in items:
        keys.check(item)
    return set(items)


def _bytes(args: tuple, budget: Budget, keys: KeyCheck) -> bytes:
    if args:
        raise UnsafeFileError("bytes with arguments")
    return b""


def _bytearray(args: tuple, budget: Budget, keys: KeyCheck) -> bytearray:
    if len(args) == 2 and type(args[0]) is str and args[1] == "latin-1":
        args = (args[0].encode("latin-1"),)
    value = _one(args, bytes)
    budget.charge_copy(len(value))
    return bytearray(value)


def _encode(args: tuple, budget: Budget, keys: KeyCheck) -> bytes:
    """How protocols before 3 store bytes: as text in Latin-1."""
    if not 1 <= len(args) <= 2 or type(args[0]) is not str or args[1:] not in [(), ("latin1",)]:
        raise UnsafeFileError("expected a string and latin1")
    budget.charge_copy(len(args[0]))
    return args[0].encode("latin-1" if args[1:] else "utf-8")


def _complex(args: tuple, budget: Budget, keys: KeyCheck) -> complex:
    if len(args) != 2 or any(type(part) not in (float, int) for part in args):
        raise UnsafeFileError("a complex number takes two numbers")
    return complex(*args)


def _reconstructor(args: tuple, budget: Budget, keys: KeyCheck) -> Record:
    """How protocols 0 and 1 make an object of a Python class."""
    symbol, base, state = args
    if type(symbol) is not Symbol or not makes_records(symbol.kind) or state is not None:
        raise UnsafeFileError("an object of a class that is not allowed")
    if type(base) is not Symbol or base.kind != "builtins.object":
        raise UnsafeFileError("an object that extends a built-in class")
    return Record(symbol.kind)


def _io_bytes(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    if args:
        return _one(args, bytes)

    def finish(state: Any) -> bytes:
        if type(state) is not tuple or not state or type(state[0]) not in (bytes, bytearray):
            raise UnsafeFileError("a BytesIO needs its bytes")
        budget.charge_copy(len(state[0]))
        return bytes(state[0])

    return Shell("io.BytesIO", finish)


def _size(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Size:
    sizes = _one(args, tuple, list)
    if len(sizes) > 64 or any(type(size) is not int for size in sizes):
        raise UnsafeFileError("a torch.Size of other things than integers")
    return torch.Size(sizes)


def _device(args: tuple, budget: Budget, keys: KeyCheck) -> torch.device:
    text = ":".join(str(part) for part in args if type(part) in (str, int))
    if not 1 <= len(args) <= 2 or not _DEVICE.match(text):
        raise UnsafeFileError(f"the device {shown(text)}")
    return torch.device(text)


def _layout(args: tuple, budget: Budget, keys: KeyCheck) -> torch.layout:
    value = TORCH_CONSTANTS.get(_one(args, str))
    if not isinstance(value, torch.layout):
        raise UnsafeFileError("an unknown layout")
    return value


def _tensor(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Tensor:
    """_rebuild_tensor(storage, offset, size, stride) and _rebuild_tensor_v2(..., grad, hooks)."""
    if not 4 <= len(args) <= 7:
        raise UnsafeFileError(f"a tensor of {len(args)} arguments")
    _refuse_bits(args[6:])
    budget.charge(TENSOR_COST)
    return rebuild_tensor(args[0], args[1], args[2], args[3], None)


def _typed_tensor(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Tensor:
    """_rebuild_tensor_v3(storage, offset, size, stride, grad, hooks, dtype, metadata)."""
    if not 7 <= len(args) <= 8 or not isinstance(args[6], torch.dtype):
        raise UnsafeFileError(f"a tensor of {len(args)} arguments and a dtype")
    _refuse_bits(args[7:])
    budget.charge(TENSOR_COST)
    return rebuild_tensor(args[0], args[1], args[2], args[3], args[6])


def _refuse_bits(metadata: tuple) -> None:
    if not metadata or metadata[0] is None:
        return
    if type(metadata[0]) is not dict or len(metadata[0]) > 8 or any(metadata[0].values()):
        raise UnsafeFileError("a tensor with conjugate or negative bit")


def _parameter(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Tensor:
    """_rebuild_parameter(data, grad, hooks[, state]) and the like: the tensor is what counts."""
    if not args or type(args[0]) is not torch.Tensor:
        raise UnsafeFileError("a parameter needs a tensor")
    return args[0]


def _subclass_tensor(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    """_rebuild_from_type_v2(function, type, arguments, state): reduced to its plain tensor."""
    function, kind, inner, _ = args
    if type(function) is not Symbol or function.kind not in _TENSOR_FUNCTIONS:
        raise UnsafeFileError("a tensor subclass that is not made of a plain tensor")
    if type(kind) is not Symbol or type(inner) is not tuple:
        raise UnsafeFileError("a tensor subclass needs a class and arguments")
    return _TENSOR_FUNCTIONS[function.kind](inner, budget, keys)


def _array(args: tuple, budget: Budget, keys: KeyCheck) -> Shell:
    """numpy's _reconstruct(ndarray, (0,), b"b"), which its state then fills."""
    if len(args) != 3 or type(args[0]) is not Symbol or args[0].kind != "numpy.ndarray":
        raise UnsafeFileError("an array that is no numpy.ndarray")
    return Shell("numpy.ndarray", ArrayState(budget))


def _whole_array(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    """numpy's _frombuffer(data, dtype, shape, order) of protocol 5."""
    data, dtype, shape, order = args
    return ArrayState(budget)((1, shape, dtype, order == "F", data))


def _array_class(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    raise UnsafeFileError("an array without its contents")


def _dtype(args: tuple, budget: Budget, keys: KeyCheck) -> Shell:
    return dtype_of(args)


def _scalar(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    return scalar_of(args)


_Maker = Callable[[tuple, Budget, KeyCheck], Any]

_TENSOR_FUNCTIONS: dict[str, _Maker] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _parameter,
}

MAKERS: dict[str, _Maker] = {
    **_TENSOR_FUNCTIONS,
    "torch._tensor._rebuild_from_type_v2": _subclass_tensor,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _deque,
    "builtins.set": _set,
    "builtins.frozenset": lambda args, budget, keys: frozenset(_set(args, budget, keys)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "io.BytesIO": _io_bytes,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _whole_array,
    "numpy.ndarray": _array_class,
    "numpy.dtype": _dtype,
}

"""The names a pickle may use, and what each of them makes: plain data, never the named class.

A name is data (a dtype), a function of this module that checks its arguments, or, for classes of
the training systems whose files we read, an inert `Symbol` that makes inert `Record`s. Nothing is
imported because of a name.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from megacore.checkpoint.torch_files.checks import KeyCheck
from megacore.checkpoint.torch_files.inert import Record, Symbol
from megacore.checkpoint.torch_files.limits import Budget
from megacore.checkpoint.torch_files.numpy_values import ArrayState, dtype_of, scalar_of
from megacore.checkpoint.torch_files.shell import Shell
from megacore.checkpoint.torch_files.storages import STORAGE_DTYPES, Storage, rebuild_tensor
from megacore.errors import UnsafeFileError

# Classes below these packages become records. They are names here, not modules.
_RECORD_PACKAGES = frozenset({"megatron", "transformer_engine", "apex", "modelopt", "deepspeed"})
_RECORD_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
_RECORD_NAMES = frozenset(
    {
        "argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath",
        "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta", "builtins.range",
        "builtins.slice", "functools.partial",
    }
)  # fmt: skip

# Names that may stand in the data, as a default factory or a configured function, but not be
# called.
_CONSTANTS = frozenset(
    {
        "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.list",
        "builtins.dict", "builtins.tuple", "builtins.object", "torch.Tensor",
        "torch.nn.parameter.Parameter", "torch._C._nn.gelu", "torch._C._nn.silu",
        "torch.nn.functional.gelu", "torch.nn.functional.silu", "torch.nn.functional.relu",
        "torch.nn.init.normal_", "torch.nn.init.xavier_uniform_",
    }
)  # fmt: skip

# How Python 2 calls modules, also in pickles of protocol 2 that Python 3 writes.
_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "_io": "io",
    "torch.tensor": "torch._tensor",
}
_RENAMED_BUILTINS = {"xrange": "range", "unicode": "str", "long": "int"}

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
_DEVICE = re.compile(r"[a-z]+(:[0-9]{1,4})?\Z")

_TORCH_CONSTANTS = {
    f"torch.{name}": value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout)
}


def resolve(module: str, name: str) -> Any:
    """What a name stands for.

    Raises:
        UnsafeFileError: The name is not allowed.
    """
    if module == "__builtin__":
        name = _RENAMED_BUILTINS.get(name, name)
    module = _RENAMED.get(module, module)
    kind = f"{module}.{name}"
    if kind in _TORCH_CONSTANTS:
        return _TORCH_CONSTANTS[kind]
    if kind in _CONSTRUCTORS or kind in _CONSTANTS or _makes_records(kind):
        return Symbol(kind)
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_DTYPES:
        return Symbol(kind)
    raise UnsafeFileError(f"the name {kind[:200]!r} is not allowed")


def _makes_records(kind: str) -> bool:
    return kind in _RECORD_NAMES or (
        (kind.partition(".")[0] in _RECORD_PACKAGES or kind.startswith(_RECORD_MODULES))
        and len(kind) < 256
        and _PLAIN_NAME.match(kind) is not None
    )


def storage_dtype(symbol: object) -> torch.dtype:
    """The dtype that a storage class stands for.

    Raises:
        UnsafeFileError: It is no storage class.
    """
    if isinstance(symbol, Symbol):
        name = symbol.kind.rpartition(".")[2]
        if symbol.kind.startswith("torch.") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
    raise UnsafeFileError("a storage of unknown type")


def construct(function: Any, args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    """What calling a name with arguments makes.

    Raises:
        UnsafeFileError: It may not be called, or not with these arguments.
    """
    if type(function) is not Symbol:
        raise UnsafeFileError(f"a call of a {type(function).__name__}")
    maker = _CONSTRUCTORS.get(function.kind)
    if maker is not None:
        try:
            return maker(args, budget, keys)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UnsafeFileError(f"{function.kind} with wrong arguments: {error}") from error
    if _makes_records(function.kind):
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
    if all(part is None or _is_attributes(part) for part in parts):
        for part in parts:
            budget.charge(len(part or ()))
            target.fields.update(part or {})
    else:
        target.state = state
    return target


def _is_attributes(value: Any) -> bool:
    return type(value) is dict and all(type(name) is str for name in value)


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
    budget.charge(len(items))
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
    budget.charge(len(value) >> 6)
    return bytearray(value)


def _encode(args: tuple, budget: Budget, keys: KeyCheck) -> bytes:
    """How protocols before 3 store bytes: as text in Latin-1."""
    if not 1 <= len(args) <= 2 or type(args[0]) is not str or args[1:] not in [(), ("latin1",)]:
        raise UnsafeFileError("expected a string and latin1")
    budget.charge(len(args[0]) >> 6)
    return args[0].encode("latin-1" if args[1:] else "utf-8")


def _complex(args: tuple, budget: Budget, keys: KeyCheck) -> complex:
    if len(args) != 2 or any(type(part) not in (float, int) for part in args):
        raise UnsafeFileError("a complex number takes two numbers")
    return complex(*args)


def _reconstructor(args: tuple, budget: Budget, keys: KeyCheck) -> Record:
    """How protocols 0 and 1 make an object of a Python class."""
    symbol, base, state = args
    if type(symbol) is not Symbol or not _makes_records(symbol.kind) or state is not None:
        raise UnsafeFileError("an object of a class that is not allowed")
    if type(base) is not Symbol or base.kind != "builtins.object":
        raise UnsafeFileError("an object that extends a built-in class")
    return Record(symbol.kind)


def _io_bytes(args: tuple, budget: Budget, keys: KeyCheck) -> Any:
    if args:
        budget.charge(len(args[0]) >> 6)
        return _one(args, bytes)

    def finish(state: Any) -> bytes:
        if type(state) is not tuple or not state or type(state[0]) not in (bytes, bytearray):
            raise UnsafeFileError("a BytesIO needs its bytes")
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
        raise UnsafeFileError(f"the device {text[:40]!r}")
    return torch.device(text)


def _layout(args: tuple, budget: Budget, keys: KeyCheck) -> torch.layout:
    value = _TORCH_CONSTANTS.get(_one(args, str))
    if not isinstance(value, torch.layout):
        raise UnsafeFileError("an unknown layout")
    return value


# What a tensor costs in memory, in objects.
_TENSOR_COST = 16


def _tensor(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Tensor:
    """_rebuild_tensor(storage, offset, size, stride) and _rebuild_tensor_v2(..., grad, hooks)."""
    if not 4 <= len(args) <= 7:
        raise UnsafeFileError(f"a tensor of {len(args)} arguments")
    _refuse_bits(args[6:])
    budget.charge(_TENSOR_COST)
    return rebuild_tensor(args[0], args[1], args[2], args[3], None)


def _typed_tensor(args: tuple, budget: Budget, keys: KeyCheck) -> torch.Tensor:
    """_rebuild_tensor_v3(storage, offset, size, stride, grad, hooks, dtype, metadata)."""
    if not 7 <= len(args) <= 8 or not isinstance(args[6], torch.dtype):
        raise UnsafeFileError(f"a tensor of {len(args)} arguments and a dtype")
    _refuse_bits(args[7:])
    budget.charge(_TENSOR_COST)
    return rebuild_tensor(args[0], args[1], args[2], args[3], args[6])


def _refuse_bits(metadata: tuple) -> None:
    if metadata and (type(metadata[0]) is not dict or any(metadata[0].values())):
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

_CONSTRUCTORS: dict[str, _Maker] = {
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

__all__ = ["Shell", "Storage", "build", "construct", "resolve", "storage_dtype"]

"""The names that pickles of checkpoints use. They are text here: nothing is imported.

Names of the training systems whose files we read stand for inert `Symbol`s and `Record`s.
"""

from __future__ import annotations

import re

import torch

from megacore.checkpoint.torch_files.inert import Symbol
from megacore.checkpoint.torch_files.storages import STORAGE_DTYPES
from megacore.errors import UnsafeFileError

# Classes below these packages become records. They are names here, not modules.
_RECORD_PACKAGES = frozenset({"megatron", "transformer_engine", "apex", "modelopt", "deepspeed"})
_RECORD_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
_RECORD_NAMES = frozenset(
    {
        "argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath",
        "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath", "datetime.date", "datetime.datetime", "datetime.timedelta",
        "builtins.range", "builtins.slice", "functools.partial", "signal.Signals", "uuid.UUID",
    }
)  # fmt: skip

# Names that may stand in the data, as a default factory or a configured function, but not be
# called.
CONSTANTS = frozenset(
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

TORCH_CONSTANTS = {
    f"torch.{name}": value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout)
}


def full_name(module: str, name: str) -> str:
    """A name as the tables have it, whatever version of Python or a library wrote it."""
    if module == "__builtin__":
        name = _RENAMED_BUILTINS.get(name, name)
    return f"{_RENAMED.get(module, module)}.{name}"


def is_storage(kind: str) -> bool:
    """Whether it is a storage class of torch."""
    module, _, name = kind.rpartition(".")
    return module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_DTYPES


def makes_records(kind: str) -> bool:
    """Whether a class becomes an inert record."""
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
    if isinstance(symbol, Symbol) and is_storage(symbol.kind):
        return STORAGE_DTYPES[symbol.kind.rpartition(".")[2]]
    raise UnsafeFileError("a storage of unknown type")

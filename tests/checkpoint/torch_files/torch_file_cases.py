"""Values that checkpoints hold, and what reading makes of them."""

from __future__ import annotations

import argparse
import collections
import io
import math
import pathlib
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from megacore.checkpoint.torch_files import Record, Symbol

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


def _tensors() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (3, 5), generator=generator)
    matrix = torch.randn(6, 7, generator=generator)
    return {
        "by dtype": {str(dtype): values.to(dtype) for dtype in DTYPES},
        "transposed": matrix.t(),
        "strided": matrix[1::2, ::3],
        "empty": [torch.empty(0), torch.empty(3, 0, 2), torch.empty(0, dtype=torch.bfloat16)],
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(matrix.clone()),
        "generator state": generator.get_state(),
        "expanded": torch.ones(1, 3).expand(4, 3),
    }


CASES: dict[str, Any] = {
    "tensors": _tensors(),
    "one tensor": torch.arange(5.0),
    "no tensor": {"iteration": 10, "name": "x"},
    "containers": {
        "nested": {"list": [1, [2, (3, ())]], 5: "five", (1, "a"): None, None: True},
        "ordered": OrderedDict([("b", 1), ("a", OrderedDict())]),
        "default": collections.defaultdict(dict, {"x": 1}),
        "counter": collections.Counter("abca"),
        "deque": collections.deque([1, 2], maxlen=5),
        "sets": [{1, 2}, frozenset("ab"), set()],
        "numbers": [True, 0, -1, 1 << 40, -(1 << 100), 1.5, math.inf, 2 - 1j],
        "bytes": [b"", b"\x00\xff\n", bytearray(b"ab"), bytearray(), io.BytesIO(b"state")],
        "texts": ["", "\u00e9\n'\"\\", "x" * 300],
    },
    "torch values": [
        torch.bfloat16, torch.float8_e4m3fn, torch.Size([2, 3]), torch.device("cpu"),
        torch.device("cuda", 1), torch.strided,
    ],
    "numpy": {
        "arrays": [
            np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.array([True]), np.zeros((0, 3)), np.array(["a", "bc"]), np.array(5, np.int8),
            np.arange(3, dtype=">i4"), np.array([1 + 2j]),
        ],
        "scalars": [np.float32(1.5), np.int64(-1), np.bool_(True), np.float64(2.0)],
        "random state": np.random.RandomState(1).get_state(),
        "dtype": np.dtype("<f4"),
    },
    "objects": {
        "args": argparse.Namespace(lr=0.1, params_dtype=torch.bfloat16, data_path=["a", "b"]),
        "path": pathlib.PurePosixPath("a/b"),
        "factory": dict,
        "range": range(1, 5, 2),
    },
}  # fmt: skip


@contextmanager
def pretended_module(name: str, *classes: type) -> Iterator[None]:
    """A module, such as one of Megatron-LM, that has these classes while the block runs."""
    names = name.split(".")
    modules = {
        parent: types.ModuleType(parent)
        for parent in (".".join(names[: i + 1]) for i in range(len(names)))
    }
    for kind in classes:
        kind.__module__, kind.__qualname__ = name, kind.__name__
        setattr(modules[name], kind.__name__, kind)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for parent in modules:
            del sys.modules[parent]


def plain(value: Any) -> Any:
    """What reading makes of a value."""
    match value:
        case torch.Tensor():
            return value.detach()
        case collections.defaultdict() | collections.Counter():
            return {key: plain(item) for key, item in value.items()}
        case dict():
            return type(value)((key, plain(item)) for key, item in value.items())
        case np.ndarray():
            return value.astype(value.dtype.newbyteorder("="))
        case torch.Size() | Record():
            return value
        case list() | collections.deque():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case argparse.Namespace():
            return Record("argparse.Namespace", plain(vars(value)))
        case pathlib.PurePosixPath():
            return Record("pathlib.PurePosixPath", args=value.parts)
        case range():
            return Record("builtins.range", args=(value.start, value.stop, value.step))
        case io.BytesIO():
            return value.getvalue()
        case type():
            return Symbol(f"{value.__module__}.{value.__qualname__}")
    return value


def assert_same(found: Any, expected: Any) -> None:
    """Equal values of equal types, all the way down; tensors and arrays bit for bit."""
    assert type(found) is type(expected), f"{type(found)} {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        same = found.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(same, expected.contiguous().reshape(-1).view(torch.uint8))
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, item in expected.items():
            assert_same(found[key], item)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Record):
        assert found.kind == expected.kind
        assert_same(found.fields, expected.fields)
        assert_same(found.args, expected.args)
        assert_same(found.state, expected.state)
    elif isinstance(expected, Symbol):
        assert found.kind == expected.kind
    else:
        assert found == expected

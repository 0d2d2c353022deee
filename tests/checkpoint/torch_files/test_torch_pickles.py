"""Pickles of every protocol, and of Python 2, as the machine reads them."""

from __future__ import annotations

import argparse
import enum
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch_file_cases import CASES, assert_same, plain, pretended_module

from megacore.checkpoint.torch_files import Limits, Record, encode_pickle
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.errors import CheckpointError, UnsafeFileError


def load(data: bytes, **limits: int) -> Any:
    value, end = load_pickle(data, label="test", limits=Limits(**limits))
    assert end == len(data)
    return value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", ["containers", "torch values", "numpy", "objects"])
def test_every_protocol(case: str, protocol: int) -> None:
    if protocol < 2 and case in ("containers", "objects"):
        # Python's protocols 0 and 1 make some built-in types by functions that are refused.
        value = {"list": [1, (2, 3.5), None, True, -(1 << 70)], "text": "\u00e9\n\\", "b": b"\xff"}
        assert_same(load(pickle.dumps(value, protocol)), value)
        assert_same(
            load(pickle.dumps(argparse.Namespace(x=[1]), protocol)),
            Record("argparse.Namespace", {"x": [1]}),
        )
        return
    assert_same(load(pickle.dumps(CASES[case], protocol)), plain(CASES[case]))


@pytest.mark.parametrize("case", ["containers", "torch values", "numpy", "objects"])
def test_what_we_write_python_reads(case: str) -> None:
    assert_same(
        plain(pickle.loads(encode_pickle(load(pickle.dumps(CASES[case]))))), plain(CASES[case])
    )


PYTHON_2 = {
    "short string": (b"U\x03abc.", "abc"),
    "string": (b"T\x03\x00\x00\x00abc.", "abc"),
    "string that is no text": (b"U\x02\xff\x00.", b"\xff\x00"),
    "quoted string": (b"S'a\\'b\\n'\n.", "a'b\n"),
    "string in double quotes": (b'S"it\'s"\n.', "it's"),
    "unicode": (b"Va\\u00e9\n.", "a\u00e9"),
    "long": (b"L123L\n.", 123),
    "true": (b"I01\n.", True),
    "false": (b"I00\n.", False),
    "integer": (b"I-5\n.", -5),
    "float": (b"F1.5\n.", 1.5),
    "dictionary": (b"(dp0\nS'a'\np1\nI1\nsg1\nI2\ns.", {"a": 2}),
    "list": (b"(lp0\nI1\naI2\na.", [1, 2]),
    "tuple": (b"(I1\nI2\ntp0\n.", (1, 2)),
    "dictionary of items": (b"(I1\nI2\nd.", {1: 2}),
    "old-style object": (
        b"(iargparse\nNamespace\np0\n(dp1\nS'x'\nI1\nsb.",
        Record("argparse.Namespace", {"x": 1}),
    ),
    "object of a binary protocol": (
        b"(cargparse\nNamespace\no}U\x01xK\x01sb.",
        Record("argparse.Namespace", {"x": 1}),
    ),
    "new-style object": (
        b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR}U\x01xK\x01sb.",
        Record("argparse.Namespace", {"x": 1}),
    ),
    "set": (b"c__builtin__\nset\n((lI1\natR.", {1}),
    "array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\xc3\\xa9'\ntb.",
        np.array([0xC3, 0xA9], np.uint8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PYTHON_2)
def test_pickles_of_python_2(case: str) -> None:
    data, expected = PYTHON_2[case]
    assert_same(load(data), expected)


def test_enumerations_and_objects_of_megatron() -> None:
    """Made by classes that exist while they are written, and do not when they are read."""

    class ModelType(enum.Enum):
        encoder_or_decoder = 1
        encoder_and_decoder = 2

    class Config:
        def __init__(self) -> None:
            self.hidden_size = 8
            self.dtype = torch.bfloat16

    class Slotted:
        __slots__ = ("x",)

        def __init__(self) -> None:
            self.x = 3

    with pretended_module("megatron.core.enums", ModelType, Config, Slotted):
        values = [
            pickle.dumps([ModelType.encoder_and_decoder, Config(), Slotted(), Config], protocol)
            for protocol in (2, 4, 5)
        ]
        again = pickle.loads(encode_pickle(load(values[0])[:2]))
        assert again[0] is ModelType.encoder_and_decoder
        assert vars(again[1]) == vars(Config())
    for data in values:
        model_type, config, slotted, kind = load(data)
        assert_same(model_type, Record("megatron.core.enums.ModelType", args=(2,)))
        assert_same(
            config,
            Record("megatron.core.enums.Config", {"hidden_size": 8, "dtype": torch.bfloat16}),
        )
        assert_same(slotted, Record("megatron.core.enums.Slotted", {"x": 3}))
        assert kind.kind == "megatron.core.enums.Config"


def test_shared_values_stay_shared() -> None:
    shared = [1]
    one, other = load(pickle.dumps([shared, shared]))
    assert one is other


def test_limits_are_kept() -> None:
    data = pickle.dumps(list(range(10)))
    assert load(data) == list(range(10))
    many = pickle.dumps([[] for _ in range(1000)])
    with pytest.raises(UnsafeFileError, match="more than 100 objects"):
        load(many, objects=100)
    with pytest.raises(UnsafeFileError, match="nested deeper than 3"):
        load(pickle.dumps([[[[1]]]]), depth=3)
    with pytest.raises(UnsafeFileError, match="an integer of 9 bytes"):
        load(pickle.dumps(1 << 64), integer_bytes=8)


REFUSED = {
    "an object": object(),
    "a function": len,
    "a date": __import__("datetime").date(2020, 1, 1),
    "an array of objects": np.array([None]),
    "an array of fields": np.zeros(1, "i4,f4"),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a tensor without data": torch.empty(2, device="meta"),
    "a tensor": torch.ones(2),
    "a long integer": 1 << 3000,
    "a record of no module": Record("Namespace"),
    "a record of two lines": Record("a\nb.C"),
    "a record with both": Record("a.C", {"x": 1}, state=1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_safe_form_is_not_written(case: str) -> None:
    with pytest.raises(CheckpointError):
        encode_pickle({"value": REFUSED[case]})


def test_a_value_in_itself_is_not_written() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CheckpointError, match="nested deeper"):
        encode_pickle(value)

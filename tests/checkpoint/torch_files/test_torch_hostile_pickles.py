"""Pickles that want to run code, or ask for more than there is, are refused: one typed error."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from pathlib import Path

import pytest
import torch
from hostile import (
    FOUR_FLOATS,
    call,
    integer,
    name,
    pickled,
    storage,
    tensor,
    text,
    torch_file,
)

from megacore.checkpoint.torch_files import Limits, Record, Symbol, read_torch_file
from megacore.checkpoint.torch_files.limits import DEFAULT_LIMITS
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.errors import CheckpointError, UnsafeFileError

_MARKER = "touch /nonexistent-marker"


def load(body: bytes, limits: Limits = DEFAULT_LIMITS) -> object:
    return load_pickle(pickled(body), label="test", limits=limits)[0]


def lines(*parts: str) -> bytes:
    return "".join(f"{part}\n" for part in parts).encode()


CODE = {
    "os.system": call("os", "system", text(_MARKER)),
    "posix.system": call("posix", "system", text(_MARKER)),
    "subprocess.Popen": call("subprocess", "Popen", text("sh")),
    "eval": call("builtins", "eval", text("1")),
    "eval of Python 2": call("__builtin__", "eval", text("1")),
    "exec": call("builtins", "exec", text("1")),
    "compile": call("builtins", "compile", text("1"), text(""), text("exec")),
    "open": call("builtins", "open", text("f"), text("w")),
    "io.open": call("io", "open", text("f"), text("w")),
    "getattr": call("builtins", "getattr", name("collections", "OrderedDict"), text("__init__")),
    "__import__": call("builtins", "__import__", text("os")),
    "importlib": call("importlib", "import_module", text("os")),
    "runpy": call("runpy", "run_path", text("x.py")),
    "pty": call("pty", "spawn", text("sh")),
    "webbrowser": call("webbrowser", "open", text("http://x")),
    "torch.load": call("torch", "load", text("x.pt")),
    "torch.serialization.load": call("torch.serialization", "load", text("x.pt")),
    "torch.jit": call("torch.jit", "load", text("x.pt")),
    "torch.hub": call("torch.hub", "load", text("x"), text("y")),
    "torch._dynamo": call("torch._dynamo.eval_frame", "set_eval_frame", b"N"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", text("x")),
    "torch._utils.other": call("torch._utils", "_import_dotted_name", text("os.system")),
    "numpy load": call("numpy", "load", text("x.npy")),
    "numpy runstring": call("numpy.testing._private.utils", "runstring", text("1"), b"}"),
    "pickle.loads": call("pickle", "loads", text("x")),
    "codecs": call("_codecs", "decode", text("x"), text("zlib")),
    "marshal": call("marshal", "loads", text("x")),
    "code": call("types", "CodeType", b"N"),
    "function": call("types", "FunctionType", b"N"),
    "operator": call("operator", "attrgetter", text("system")),
    "functools.reduce": call("functools", "reduce", b"N"),
    "map": call("builtins", "map", name("builtins", "int"), b"]"),
    "type": call("builtins", "type", text("X"), b")", b"}"),
    "weakref": call("weakref", "finalize", b"N"),
    "call a constant": call("builtins", "int", text("1")),
    "call a function of torch": call("torch.nn.functional", "gelu", b"N"),
    "dotted name": text("builtins") + text("dict.fromkeys") + b"\x93",
    "dotted name of an allowed class": text("collections") + text("OrderedDict.fromkeys") + b"\x93",
    "dotted through a module": text("torch") + text("serialization.os.system") + b"\x93",
    "dunder of an allowed class": text("torch") + text("Size.__reduce__") + b"\x93",
    "attribute of a package": name("torch", "os"),
    "name with a newline": text("megatron") + text("a\nb") + b"\x93",
    "name that is no name": name("megatron", "core;import os"),
    "name of bytes": b"C\x02osC\x06system\x93",
    "look-alike of a package": call("megatronx.core", "f"),
    "look-alike of torch": call("torch.distributed.checkpointx", "f"),
    "INST": b"(" + text(_MARKER) + b"i" + lines("os", "system"),
    "OBJ": b"(" + name("os", "system") + text(_MARKER) + b"o",
    "NEWOBJ": name("os", "system") + b"(" + text(_MARKER) + b"t\x81",
    "NEWOBJ_EX": name("os", "system") + b"(" + text(_MARKER) + b"t}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "BINPERSID": b"K\x00Q",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "unknown opcode": b"\xff",
    "call a string": text("os") + b")R",
    "call None": b"N)R",
    "call a record": call("argparse", "Namespace") + b")R",
    "arguments that are a list": name("collections", "OrderedDict") + b"]R",
}

ARGUMENTS = {
    "OrderedDict of numbers": call("collections", "OrderedDict", b"]K\x01a"),
    "OrderedDict of triples": call("collections", "OrderedDict", b"]K\x01K\x02K\x03\x87a"),
    "set of a string": call("builtins", "set", text("ab")),
    "set of lists": call("builtins", "set", b"]]a"),
    "bytes of a size": call("builtins", "bytes", integer(1 << 40)),
    "bytearray of a size": call("builtins", "bytearray", integer(1 << 40)),
    "deque with a length": call("collections", "deque", integer(1 << 40)),
    "defaultdict of a value": call("collections", "defaultdict", text("x")),
    "complex of text": call("builtins", "complex", text("1"), b"K\x00"),
    "encode with rot13": call("_codecs", "encode", text("a"), text("rot13")),
    "encode with zip": call("_codecs", "encode", text("a"), text("zlib_codec")),
    "torch.Size of text": call("torch", "Size", text("12")),
    "torch.Size of objects": call("torch", "Size", b"N\x85"),
    "unknown device": call("torch", "device", text("nowhere")),
    "device of another form": call("torch", "device", text("cpu\nx")),
    "unknown layout": call("torch.serialization", "_get_layout", text("os.system")),
    "layout that is a dtype": call("torch.serialization", "_get_layout", text("torch.float32")),
    "parameter without tensor": call("torch._utils", "_rebuild_parameter", text("x")),
    "tensor of a string": call(
        "torch._utils", "_rebuild_tensor_v2", text("x"), b"K\x00", b")", b")", b"\x89", b"N"
    ),
    "tensor without arguments": call("torch._utils", "_rebuild_tensor_v2"),
    "subclass of a function": call(
        "torch._tensor", "_rebuild_from_type_v2",
        name("collections", "OrderedDict"), name("torch", "Tensor"), b")", b"}",
    ),
    "sparse tensor": call("torch._utils", "_rebuild_sparse_tensor", b"N", b"N"),
    "quantized tensor": call("torch._utils", "_rebuild_qtensor", b"N"),
    "reconstruct a dictionary": call(
        "copyreg", "_reconstructor", name("argparse", "Namespace"), name("builtins", "dict"), b"}"
    ),
    "reconstruct a stranger": call(
        "copyreg", "_reconstructor", name("collections", "OrderedDict"),
        name("builtins", "object"), b"N",
    ),
    "object array": call("numpy", "dtype", text("O8"), b"\x89", b"\x88"),
    "void dtype": call("numpy", "dtype", text("V99999999"), b"\x89", b"\x88"),
    "dtype of many fields": call("numpy", "dtype", text("i4,i4"), b"\x89", b"\x88"),
    "empty strings": call("numpy", "dtype", text("S0"), b"\x89", b"\x88"),
    "array that is never filled": call(
        "numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", text("b")
    ),
    "array of another class": call(
        "numpy.core.multiarray", "_reconstruct", name("numpy", "dtype"), b"K\x00\x85", text("b")
    ),
    "array without contents": call("numpy", "ndarray", integer(1 << 40) + b"\x85"),
    "scalar of too many bytes": call(
        "numpy.core.multiarray", "scalar",
        call("numpy", "dtype", text("i8"), b"\x89", b"\x88"), text("abc"),
    ),
    "BytesIO without bytes": name("io", "BytesIO") + b")\x81N\x85b",
    "state for a list": b"]}b",
    "state for a dtype": name("torch", "float32") + b"}b",
    "state for a set": b"\x8f}b",
    "keywords": name("argparse", "Namespace") + b")}" + text("a") + b"K\x01s\x92",
}  # fmt: skip

SHAPES = {
    "APPEND to a dictionary": b"}K\x01a",
    "APPENDS to a tuple": b")(K\x01e",
    "APPEND to an object": call("argparse", "Namespace") + b"K\x01a",
    "SETITEM of a list": b"](K\x01K\x02u",
    "SETITEMS of an object": call("argparse", "Namespace") + b"(K\x01K\x02u",
    "ADDITEMS to a list": b"](K\x01\x90",
    "list as key": b"}]K\x01s",
    "dictionary as key": b"}}K\x01s",
    "set element that is a list": b"\x8f(]\x90",
    "long integer as key": b"}" + integer(1 << 100) + b"K\x01s",
    "key without value": b"}(K\x01u",
    "POP of nothing": b"0",
    "BUILD of nothing": b"b",
    "REDUCE of nothing": b"R",
    "TUPLE3 of nothing": b"\x87",
    "APPENDS without mark": b"]e",
    "two values": b"K\x01K\x02",
    "no value": b"",
    "mark left over": b"K\x01(",
    "GET of nothing": b"h\x05",
    "GET of text": b"gx\n",
    "PUT of nothing": b"q\x00",
    "unending line": b"cos",
    "STRING without quotes": b"Sabc\n",
    "INT of text": b"Ix\n",
    "FLOAT of text": b"Fx\n",
    "broken UTF-8": b"X\x01\x00\x00\x00\xff",
    "protocol 9": b"\x80\x09N",
    "list in itself": b"]q\x00h\x00a",
    "dictionary in itself": b"}q\x00K\x01h\x00s",
    "record in itself": call("argparse", "Namespace") + b"q\x00}" + text("x") + b"h\x00sb",
    "tuple in itself": b"]q\x00h\x00\x85a",
    "BINUNICODE past the end": b"X\xff\xff\xff\xff",
    "BINUNICODE8 past the end": b"\x8d" + b"\xff" * 8,
    "BINBYTES8 past the end": b"\x8e" + struct.pack("<Q", 1 << 62),
    "BYTEARRAY8 past the end": b"\x96" + struct.pack("<Q", 1 << 50),
    "LONG4 past the end": b"\x8b\xff\xff\xff\x7f",
    "long LONG4": b"\x8b" + struct.pack("<I", 100000) + b"\x01" * 100000,
    "long LONG": b"L" + b"9" * 100000 + b"L\n",
    "long INT": b"I" + b"9" * 100000 + b"\n",
}


@pytest.mark.parametrize("case", CODE)
def test_code_is_refused(case: str) -> None:
    before = set(sys.modules)
    with pytest.raises(UnsafeFileError, match=r"test: position [0-9]+: "):
        load(CODE[case])
    assert set(sys.modules) == before


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_are_refused(case: str) -> None:
    with pytest.raises(UnsafeFileError, match="test: "):
        load(ARGUMENTS[case])


@pytest.mark.parametrize("case", SHAPES)
def test_pickles_that_do_not_fit_together_are_refused(case: str) -> None:
    with pytest.raises(CheckpointError, match="test: "):
        load(SHAPES[case])


def test_the_message_names_file_record_position_and_opcode(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(torch_file(b"N0" + CODE["os.system"]))
    with pytest.raises(UnsafeFileError) as caught:
        read_torch_file(path)
    assert str(caught.value) == (
        f"{path}: data.pkl: position 4: GLOBAL: the name 'os.system' is not allowed"
    )


def test_pickle_itself_would_have_run_it(tmp_path: Path) -> None:
    """The attack of these tests is real: Python's own pickle falls for it."""
    victim = tmp_path / "made"
    body = pickled(call("os", "mkdir", text(str(victim))))
    pickle.loads(body)
    assert victim.is_dir()
    os.rmdir(victim)
    with pytest.raises(UnsafeFileError):
        load_pickle(body, label="test")
    assert not victim.exists()


def test_classes_of_training_systems_are_inert() -> None:
    value = load(
        b"("
        + call("megatron.core.enums", "ModelType", b"K\x01")
        + name("megatron.model.enums", "AttnMaskType")
        + name("argparse", "Namespace") + b")\x81}" + text("__class__") + text("x") + b"sb"
        + name("megatron.evil", "Thing") + b")\x81" + text("any state") + b"b"
        + b"l"
    )  # fmt: skip
    model_type, mask, namespace, thing = value
    assert isinstance(model_type, Record)
    assert (model_type.kind, model_type.args) == ("megatron.core.enums.ModelType", (1,))
    assert mask == Symbol("megatron.model.enums.AttnMaskType")
    assert type(namespace) is Record
    assert namespace.fields == {"__class__": "x"}
    assert (thing.kind, thing.state) == ("megatron.evil.Thing", "any state")
    assert not any(module.split(".")[0] == "megatron" for module in sys.modules)


BOMBS = {
    # Each list holds the one before twice: 2^60 leaves for whoever walks it.
    "doubling lists": b"]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
    ),
    "doubling tuples": b")q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    ),
    "doubling tuple as key": b"})q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    ) + b"Ns",
    "deep lists": b"]" * 20000 + b"a" * 19999,
    "deep tuples": b")" + b"\x85" * 20000,
    "deep marks": b"(" * 100000,
    "deep records": b"N" + b"\x85" * 3000,
    "deep tuple as key": b"})" + b"\x85" * 20000 + b"Ns",
    "many copies of a list": b"](" + b"K\x01" * 5000 + b"eq\x00"
    + (name("builtins", "set") + b"h\x00\x85R0") * 5000,
    "many copies of bytes": text("x" * 100000) + b"q\x00"
    + (name("_codecs", "encode") + b"h\x00\x85R0") * 5000,
    "many copies of attributes": b"}(" + b"".join(
        text(str(i)) + b"N" for i in range(5000)
    ) + b"uq\x00" + call("argparse", "Namespace") + b"h\x00b" * 20000,
    "many memo entries": b"N" + b"\x94" * 200000,
    "many duplicates": b"N" + b"2" * 200000,
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused(case: str) -> None:
    # Each of these takes hours, or all the memory, when it works.
    with pytest.raises(CheckpointError, match="test: "):
        load(BOMBS[case], Limits(objects=100_000))


def test_keys_with_one_hash_are_refused() -> None:
    """Tuples whose hash is the same make a dictionary quadratic; we look for them."""
    # hash(-1) == hash(-2), so these 2^12 different tuples share one hash.
    keys = [tuple(-1 - (i >> bit & 1) for bit in range(12)) for i in range(1 << 12)]
    assert len({hash(key) for key in keys}) == 1
    body = b"}(" + b"".join(
        b"(" + b"".join(integer(item) for item in key) + b"tN" for key in keys
    ) + b"u"  # fmt: skip
    with pytest.raises(UnsafeFileError, match="same hash"):
        load(body)
    # One key in many dictionaries is what checkpoints do.
    same = b"(" + (b"}K\x01K\x02\x86Ns" * 1000) + b"l"
    assert len(load(same)) == 1000


def test_every_pickle_cut_short_is_refused() -> None:
    whole = pickle.dumps({"a": [1, 2.5, ("x", b"y")], "b": {3: None}}, protocol=4)
    load_pickle(whole, label="test")
    for size in range(len(whole)):
        with pytest.raises(CheckpointError, match="test: position"):
            load_pickle(whole[:size], label="test")


TENSORS = {
    "storage larger than its data": tensor((4,), (1,), numel=5),
    "huge storage": tensor((4,), (1,), numel=1 << 62),
    "negative storage": tensor((4,), (1,), numel=-1),
    "one element too many": tensor((5,), (1,)),
    "offset past the end": tensor((4,), (1,), offset=1),
    "negative offset": tensor((2,), (1,), offset=-1),
    "negative size": tensor((-1, -4), (4, 1)),
    "negative stride": tensor((4,), (-1,), offset=3),
    "stride past the end": tensor((2, 2), (3, 1)),
    "more strides than sizes": tensor((4,), (1, 1)),
    "product overflows to 4": tensor((1 << 62, 4, 4), (0, 0, 0)),
    "product is zero after overflow": tensor((1 << 32, 1 << 32), (0, 0)),
    "last element overflows": tensor((2, 2), (1 << 62, 1)),
    "repeated without end": tensor((1 << 40,), (0,)),
    "65 dimensions": tensor((1,) * 65, (1,) * 65),
    "missing storage": call(
        "torch._utils", "_rebuild_tensor_v2",
        storage("7", b"K\x04"), b"K\x00", b")", b")", b"\x89", b"N",
    ),
    "storage of another folder": call(
        "torch._utils", "_rebuild_tensor_v2",
        storage("../data.pkl", b"K\x04"), b"K\x00", b")", b")", b"\x89", b"N",
    ),
    "storage that is a dtype": call(
        "torch._utils", "_rebuild_tensor_v2",
        b"(" + text("storage") + name("torch", "float32") + text("0") + text("cpu") + b"K\x04tQ",
        b"K\x00", b")", b")", b"\x89", b"N",
    ),
    "module instead of a storage": b"(" + text("module") + b"NNNtQ",
    "a bare storage": storage("0", b"K\x04"),
    "storage in a list": b"]" + storage("0", b"K\x04") + b"a",
    "conjugate bit": call(
        "torch._utils", "_rebuild_tensor_v2",
        storage("0", b"K\x04"), b"K\x00", b")", b")", b"\x89", b"N",
        b"}" + text("conj") + b"\x88s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_leave_their_storage_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(torch_file(TENSORS[case], data_0=FOUR_FLOATS))
    with pytest.raises(CheckpointError, match="bad"):
        read_torch_file(path)


def test_tensors_that_fit_are_read(tmp_path: Path) -> None:
    """The refusals above are about what they say: the neighbouring cases work."""
    path = tmp_path / "good.pt"
    body = b"(" + tensor((4,), (1,)) + tensor((2, 2), (1, 2)) + tensor((2,), (1,), 2) + b"l"
    path.write_bytes(torch_file(body, data_0=FOUR_FLOATS))
    whole, transposed, end = read_torch_file(path, verify=True)
    assert torch.equal(whole, torch.arange(4.0))
    assert torch.equal(transposed, torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
    assert torch.equal(end, torch.tensor([2.0, 3.0]))

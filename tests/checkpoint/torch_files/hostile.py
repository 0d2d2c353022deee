"""Pickles and archives that no honest program writes, put together byte by byte."""

from __future__ import annotations

import io
import struct
import zipfile

import torch

from megacore.checkpoint.torch_files import encode_pickle

PROTO2 = b"\x80\x02"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *args: bytes) -> bytes:
    """GLOBAL and REDUCE with arguments that are opcodes."""
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


def pickled(body: bytes) -> bytes:
    return PROTO2 + body + b"."


def archive(
    records: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, folder: str = "archive"
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for record, data in records.items():
            out.writestr(f"{folder}/{record}" if folder else record, data)
    return buffer.getvalue()


def torch_file(body: bytes, **records: bytes) -> bytes:
    """A torch file with these opcodes as its value; names of records have _ for /."""
    data = {key.replace("_", "/"): value for key, value in records.items()}
    return archive({"data.pkl": pickled(body), "version": b"3\n", **data})


def storage(key: str, numel: bytes, kind: str = "FloatStorage") -> bytes:
    """A persistent identifier of a storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + numel + b"tQ"


def integer(value: int) -> bytes:
    return encode_pickle(value)[2:-1]


def tensor(
    sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, numel: int = 4
) -> bytes:
    """A tensor of the 4-element float storage "0"."""
    tuples = [encode_pickle(part)[2:-1] for part in (sizes, strides)]
    return call(
        "torch._utils", "_rebuild_tensor_v2",
        storage("0", integer(numel)), integer(offset), *tuples, b"\x89",
        call("collections", "OrderedDict"),
    )  # fmt: skip


FOUR_FLOATS = torch.arange(4.0).numpy().tobytes()

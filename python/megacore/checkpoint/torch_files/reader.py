"""Reads files of torch.save, without executing anything that is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint.torch_files.archive import LOCAL_SIGNATURE, Archive
from megacore.checkpoint.torch_files.inert import shown
from megacore.checkpoint.torch_files.limits import DEFAULT_LIMITS, Limits
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.checkpoint.torch_files.names import storage_dtype
from megacore.checkpoint.torch_files.old_format import read_old_file
from megacore.checkpoint.torch_files.storages import MappedFile, Storage, StoredBytes
from megacore.errors import CheckpointError, UnsafeFileError

# A file, or the bytes of one inside of another: path, offset, length.
Source = str | Path | tuple[str | Path, int, int]

_SMALL_RECORD = 1 << 10


def read_torch_file(
    source: Source, *, verify: bool = False, limits: Limits = DEFAULT_LIMITS
) -> Any:
    """The value that a file of torch.save holds.

    Tensors are on the CPU and lie in a private memory map of the file: nothing is read before it
    is used, and changing them does not change the file. Parameters come as plain tensors, objects
    as `Record`s, classes and functions as `Symbol`s, default dictionaries as dictionaries, deques
    as lists.

    Args:
        source: The file, or (path, offset, length) for one that is embedded in another.
        verify: Also compare the bytes of every tensor with the checksums of the file; the format
            before torch 1.6 has none.
        limits: Bounds on what it may ask for.

    Raises:
        UnsafeFileError: It holds something that is not allowed.
        CheckpointError: It cannot be read, is damaged, or is no such file.
    """
    path, *span = source if isinstance(source, tuple) else (source,)
    path = Path(path)
    label = str(path) + (f" (bytes {span[0]} to {span[0] + span[1]})" if span else "")
    file = MappedFile(path, *span)
    if file.read(0, 4) != LOCAL_SIGNATURE:
        return read_old_file(file, label, limits)
    archive = Archive(file, label)
    _check_kind(archive, label)
    if verify:
        for entry in archive.entries.values():
            archive.verify(entry)
    storages: dict[str, StoredBytes] = {}

    def persistent(identifier: Any) -> Storage:
        dtype, key, numel = _parse(identifier)
        if key not in storages:
            entry = archive.entry(f"data/{key}")
            storages[key] = StoredBytes(file.bytes_tensor(entry.start, entry.size))
        stored = storages[key]
        if numel * dtype.itemsize > stored.size:
            raise UnsafeFileError(
                f"storage {key}: expected {numel} elements of {dtype}, found {stored.size} bytes"
            )
        return Storage(stored, dtype, 0, numel)

    data = archive.read("data.pkl", limits.pickle_bytes)
    value, end = load_pickle(data, label=f"{label}: data.pkl", persistent=persistent, limits=limits)
    if end != len(data):
        raise CheckpointError(f"{label}: data.pkl: {len(data) - end} bytes follow the value")
    return value


def _check_kind(archive: Archive, label: str) -> None:
    if "data.pkl" not in archive.entries:
        raise CheckpointError(f"{label}: a zip archive, but not one of torch.save")
    if "constants.pkl" in archive.entries or any(
        name.startswith("code/") for name in archive.entries
    ):
        raise UnsafeFileError(f"{label}: a TorchScript program, not a checkpoint")
    order = b"little"
    if "byteorder" in archive.entries:
        order = archive.read("byteorder", _SMALL_RECORD)
    if order != b"little":
        raise CheckpointError(f"{label}: expected little-endian numbers, found {order!r}")


def _parse(identifier: Any) -> tuple[torch.dtype, str, int]:
    """Dtype, key and number of elements of ("storage", type, key, location, numel)."""
    if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
        raise UnsafeFileError("a persistent identifier that is no storage")
    _, symbol, key, _, numel = identifier
    if type(key) is not str or type(numel) is not int or not 0 <= numel < 1 << 60:
        raise UnsafeFileError(f"a storage {shown(key)} of {shown(numel)} elements")
    return storage_dtype(symbol), key, numel

"""Files of torch.save before torch 1.6: pickles one after the other, then the storages.

Source: _legacy_save in torch/serialization.py: a magic number, the protocol, facts about the
system, the value, the keys of the storages in order, and per storage its number of elements
(int64) and their bytes.
"""

from __future__ import annotations

from typing import Any

import torch

from megacore.checkpoint.torch_files.inert import shown
from megacore.checkpoint.torch_files.limits import Limits
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.checkpoint.torch_files.names import storage_dtype
from megacore.checkpoint.torch_files.storages import MappedFile, Storage, StoredBytes
from megacore.errors import CheckpointError, UnsafeFileError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"


def read_old_file(file: MappedFile, label: str, limits: Limits) -> Any:
    """The value of such a file; see `read_torch_file`.

    Raises:
        CheckpointError: It is damaged, or no file of torch.save at all.
        UnsafeFileError: It holds something that is not allowed.
    """
    if file.read(0, len(_LFS_POINTER)) == _LFS_POINTER:
        raise CheckpointError(
            f"{label}: a pointer of Git LFS instead of the file itself: fetch it with git lfs pull"
        )
    reader = _Reader(file, label, limits)
    try:
        is_old = reader.next("magic number") == _MAGIC
    except CheckpointError:
        is_old = False
    if not is_old:
        raise CheckpointError(
            f"{label}: not a file of torch.save (neither a zip archive nor the format before "
            "torch 1.6), or cut off"
        )
    protocol = reader.next("protocol")
    if protocol != _PROTOCOL:
        raise CheckpointError(f"{label}: expected protocol {_PROTOCOL}, found {shown(protocol)}")
    system = reader.next("system")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{label}: expected little-endian numbers")
    # The storages follow the value, which cannot be built without them: a first pass learns their
    # types, so that they can be found, and works on tensors without data.
    start = reader.at
    wanted = _Storages(label, file.size, {})
    reader.next("value", wanted)
    keys = reader.next("storage keys")
    found = _Storages(label, file.size, _locate(file, reader.offset, keys, wanted, label))
    reader.at = start
    return reader.next("value", found)


class _Reader:
    """One pickle after the other."""

    def __init__(self, file: MappedFile, label: str, limits: Limits) -> None:
        self._file, self._label, self._limits = file, label, limits
        self._data, self._skip = file.whole()
        self.at = self._skip

    @property
    def offset(self) -> int:
        """Bytes of the file behind us."""
        return self.at - self._skip

    def next(self, what: str, storages: _Storages | None = None) -> Any:
        """The next pickle."""
        value, self.at = load_pickle(
            self._data,
            label=f"{self._label}: {what}",
            persistent=storages,
            start=self.at,
            limits=self._limits,
        )
        return value


class _Storages:
    """Answers the persistent identifiers of storages.

    Args:
        label: What messages call the file.
        most: Bytes that no storage can exceed.
        located: Bytes of each storage by key; where one is missing, a storage without data stands
            for it.
    """

    def __init__(self, label: str, most: int, located: dict[str, StoredBytes]) -> None:
        self._label, self._most, self._located = label, most, located
        self.described: dict[str, tuple[torch.dtype, int]] = {}

    def __call__(self, identifier: Any) -> Storage:
        """The storage of ("storage", type, key, location, elements, view)."""
        if type(identifier) is not tuple or len(identifier) != 6 or identifier[0] != "storage":
            raise UnsafeFileError("a persistent identifier that is no storage")
        _, symbol, key, _, numel, view = identifier
        dtype = storage_dtype(symbol)
        if type(key) is not str or type(numel) is not int or not 0 <= numel <= self._most:
            raise UnsafeFileError(f"a storage {shown(key)} of {shown(numel)} elements")
        if self.described.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise UnsafeFileError(f"the storage {key} is described in two ways")
        stored = self._located.get(key)
        if stored is None:
            size = numel * dtype.itemsize
            stored = StoredBytes(torch.empty(size, dtype=torch.uint8, device="meta"))
            self._located[key] = stored
        if view is None:
            return Storage(stored, dtype, 0, numel)
        if type(view) is not tuple or len(view) != 3:
            raise UnsafeFileError(f"a view of storage {key} without offset and size")
        _, first, count = view
        if type(first) is not int or type(count) is not int or first < 0 or count < 0:
            raise UnsafeFileError(f"a view of storage {key} at {shown(first)}")
        if first + count > numel:
            raise UnsafeFileError(f"a view that leaves storage {key} of {numel} elements")
        return Storage(stored, dtype, first, count)


def _locate(
    file: MappedFile, offset: int, keys: Any, wanted: _Storages, label: str
) -> dict[str, StoredBytes]:
    """The bytes of every storage, which follow the pickles."""
    if (
        not isinstance(keys, list)
        or not all(type(key) is str for key in keys)
        or sorted(keys) != sorted(wanted.described)
    ):
        raise CheckpointError(f"{label}: the list of storages is not that of its value")
    located: dict[str, StoredBytes] = {}
    for key in keys:
        dtype, numel = wanted.described[key]
        count = int.from_bytes(file.read(offset, _COUNT_BYTES), "little", signed=True)
        num_bytes = numel * dtype.itemsize
        if count != numel or offset + _COUNT_BYTES + num_bytes > file.size:
            raise CheckpointError(
                f"{label}: storage {key} at position {offset}: expected {numel} elements, found "
                f"{count}, and {file.size} bytes in all: the file is damaged or cut off"
            )
        located[key] = StoredBytes(file.bytes_tensor(offset + _COUNT_BYTES, num_bytes))
        offset += _COUNT_BYTES + num_bytes
    if offset != file.size:
        raise CheckpointError(f"{label}: {file.size - offset} bytes follow the storages")
    return located

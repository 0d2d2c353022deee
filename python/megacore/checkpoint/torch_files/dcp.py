"""Directories of torch.distributed.checkpoint (DCP): the file `.metadata` and the items it lists.

`.metadata` is a pickle that says which tensors there are, how each is cut into chunks, and where
in which file each chunk lies. Every chunk, and every object, is a file of torch.save embedded in
a `.distcp` file.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py (torch 2.1 to 2.13), read as
the description of the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from megacore.checkpoint.torch_files.inert import Record, shown
from megacore.checkpoint.torch_files.limits import Limits
from megacore.checkpoint.torch_files.machine import load_pickle
from megacore.checkpoint.torch_files.pickle_writer import encode_pickle
from megacore.checkpoint.torch_files.reader import read_torch_file
from megacore.checkpoint.torch_files.storages import MappedFile
from megacore.durable import write_file
from megacore.errors import CheckpointError

METADATA_NAME = ".metadata"

# Enough for some millions of chunks.
METADATA_LIMITS = Limits(pickle_bytes=1 << 32, objects=1 << 26)

_VERSION = "1.0.0"
_CLASSES = "torch.distributed.checkpoint.metadata"
_SPAN_CLASS = "torch.distributed.checkpoint.filesystem._StorageInfo"

Offsets = tuple[int, ...]

# Name of an item, offsets of the chunk (None: an object), and its number among the chunks.
ItemKey = tuple[str, Offsets | None, int | None]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor, as a whole and in chunks.

    Attributes:
        shape: Of the whole tensor.
        dtype: Of its elements.
        chunks: Offsets and sizes of each chunk.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[tuple[Offsets, tuple[int, ...]], ...]


@dataclass(frozen=True)
class BytesEntry:
    """An object that is not a tensor."""


@dataclass(frozen=True)
class StorageSpan:
    """Where an item lies.

    Attributes:
        file: Name of a file in the directory.
        offset: First byte.
        length: Bytes.
    """

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class DcpMetadata:
    """What `.metadata` says.

    Attributes:
        entries: Name -> what it is.
        storage: Item -> where it lies.
        planner_data: Name -> path of keys in the nested dictionary that was saved; None: flat.
        extra: Other attributes, such as Megatron-Core's "mcore_data".
    """

    entries: Mapping[str, TensorEntry | BytesEntry]
    storage: Mapping[ItemKey, StorageSpan]
    planner_data: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_dcp_metadata(directory: Path, *, limits: Limits = METADATA_LIMITS) -> DcpMetadata:
    """Reads `.metadata`, as torch 2.1 to 2.13 and Megatron-Core write it.

    Raises:
        UnsafeFileError: It holds something that is not allowed.
        CheckpointError: It is missing, damaged, or says what cannot be.
    """
    path = directory / METADATA_NAME
    file = MappedFile(path)
    data, start = file.whole()
    value, end = load_pickle(data, label=str(path), start=start, limits=limits)
    if end - start != file.size:
        raise CheckpointError(f"{path}: {file.size - end + start} bytes follow the value")
    try:
        return _parse(value)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: {why}") from error


def read_item(directory: Path, span: StorageSpan, *, verify: bool = False) -> Any:
    """A chunk or object; a chunk lies in a memory map of its own part of the file.

    Args:
        directory: Of the checkpoint.
        span: Where the item lies.
        verify: Compare its bytes with the checksums that are stored with it.

    Raises:
        UnsafeFileError: It holds something that is not allowed.
        CheckpointError: It cannot be read or is damaged.
    """
    return read_torch_file((directory / span.file, span.offset, span.length), verify=verify)


def write_dcp_metadata(directory: Path, metadata: DcpMetadata) -> None:
    """Creates `.metadata`, flushed to the device.

    Raises:
        CheckpointError: It holds something that the format has no safe form for.
    """
    write_file(directory / METADATA_NAME, encode_dcp_metadata(metadata))


def encode_dcp_metadata(metadata: DcpMetadata) -> bytes:
    """The bytes of `.metadata`."""
    entries = {name: _entry_record(entry) for name, entry in metadata.entries.items()}
    storage = {
        _index_record(key): Record(
            _SPAN_CLASS,
            {"relative_path": span.file, "offset": span.offset, "length": span.length},
        )
        for key, span in metadata.storage.items()
    }
    planner_data = metadata.planner_data
    if planner_data is None:
        planner_data = {name: (name,) for name in metadata.entries}
    fields = {
        "state_dict_metadata": entries,
        "planner_data": planner_data,
        "storage_data": storage,
        "storage_meta": None,
        "version": _VERSION,
    }
    return encode_pickle(Record(f"{_CLASSES}.Metadata", {**fields, **metadata.extra}))


def _entry_record(entry: TensorEntry | BytesEntry) -> Record:
    if isinstance(entry, BytesEntry):
        return Record(f"{_CLASSES}.BytesStorageMetadata")
    contiguous = Record(f"{_CLASSES}._MEM_FORMAT_ENCODING", args=(0,))
    properties = (entry.dtype, torch.strided, False, contiguous, False)
    chunks = [
        Record(
            f"{_CLASSES}.ChunkStorageMetadata",
            {"offsets": torch.Size(offsets), "sizes": torch.Size(sizes)},
        )
        for offsets, sizes in entry.chunks
    ]
    return Record(
        f"{_CLASSES}.TensorStorageMetadata",
        {
            "properties": Record(f"{_CLASSES}.TensorProperties", state=properties),
            "size": torch.Size(entry.shape),
            "chunks": chunks,
        },
    )


def _index_record(key: ItemKey) -> Record:
    name, offsets, index = key
    offset = None if offsets is None else torch.Size(offsets)
    return Record(f"{_CLASSES}.MetadataIndex", {"fqn": name, "index": index, "offset": offset})


def _parse(value: Any) -> DcpMetadata:
    if type(value) is not Record or not value.name.endswith("Metadata"):
        raise CheckpointError("no metadata of torch.distributed.checkpoint")
    fields = dict(value.fields)
    entries = {
        _checked(name, str, "a name"): _parse_entry(name, entry)
        for name, entry in _checked(fields.pop("state_dict_metadata"), dict, "entries").items()
    }
    storage = {}
    for index, span in _checked(fields.pop("storage_data"), dict, "storage").items():
        key = _parse_index(index, entries)
        storage[key] = _parse_span(key[0], span)
    return DcpMetadata(entries, storage, fields.pop("planner_data", None), fields)


def _checked(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise CheckpointError(f"{what}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(
        type(size) is int and 0 <= size < 1 << 62 for size in value
    ):
        raise CheckpointError(f"{what}: expected sizes, found {shown(value)}")
    return tuple(value)


def _parse_entry(name: str, entry: Any) -> TensorEntry | BytesEntry:
    _checked(entry, Record, name)
    if entry.name == "BytesStorageMetadata":
        return BytesEntry()
    if entry.name != "TensorStorageMetadata":
        raise CheckpointError(f"{name}: described by a {entry.kind}")
    properties = _checked(entry.fields["properties"], Record, f"{name}: properties")
    # A tuple since its first release, attributes in the classes before it.
    state = properties.state
    dtype = state[0] if isinstance(state, tuple) and state else properties.fields.get("dtype")
    shape = _sizes(entry.fields["size"], f"{name}: size")
    if math.prod(max(size, 1) for size in shape) >= 1 << 62:
        raise CheckpointError(f"{name}: a tensor of shape {shape}")
    chunks = []
    for chunk in _checked(entry.fields["chunks"], list, f"{name}: chunks"):
        fields = _checked(chunk, Record, f"{name}: chunk").fields
        offsets = _sizes(fields["offsets"], f"{name}: offsets")
        sizes = _sizes(fields["sizes"], f"{name}: sizes")
        if not len(offsets) == len(sizes) == len(shape) or any(
            offset + size > full for offset, size, full in zip(offsets, sizes, shape, strict=True)
        ):
            raise CheckpointError(
                f"{name}: a chunk of {sizes} at {offsets} leaves the tensor of {shape}"
            )
        chunks.append((offsets, sizes))
    return TensorEntry(shape, _checked(dtype, torch.dtype, f"{name}: dtype"), tuple(chunks))


def _parse_index(index: Any, entries: Mapping[str, TensorEntry | BytesEntry]) -> ItemKey:
    """The key of an item: its numbers are small, so that keys cannot be aimed at one hash."""
    fields = _checked(index, Record, "the key of an item").fields
    name = _checked(fields["fqn"], str, "the name of an item")
    offset, number = fields.get("offset"), fields.get("index")
    entry = entries.get(name)
    if entry is None:
        raise CheckpointError(f"{name} is stored but not described")
    if number is not None and not 0 <= _checked(number, int, f"{name}: index") < 1 << 31:
        raise CheckpointError(f"{name}: chunk number {number}")
    if offset is None:
        return name, None, number
    offsets = _sizes(offset, f"{name}: offset")
    shape = entry.shape if isinstance(entry, TensorEntry) else ()
    if len(offsets) != len(shape) or any(a > b for a, b in zip(offsets, shape, strict=True)):
        raise CheckpointError(f"{name}: a chunk at {offsets} of a tensor of {shape}")
    return name, offsets, number


def _parse_span(name: str, span: Any) -> StorageSpan:
    fields = _checked(span, Record, f"{name}: place").fields
    file = _checked(fields["relative_path"], str, f"{name}: file")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\0" in file or not path.name:
        raise CheckpointError(f"{name}: stored in {file!r}, which leaves the directory")
    offset, length = _sizes((fields["offset"], fields["length"]), f"{name}: place")
    if fields.get("transform_descriptors"):
        raise CheckpointError(
            f"{name}: transformed by {fields['transform_descriptors']}, which is not supported"
        )
    return StorageSpan(file, offset, length)

"""Writes files of torch.save as a stream: one pass, checksums on the way, no copy of a tensor.

The layout is that of torch's own writer, also where the zip format leaves a choice: data begins
at multiples of 64 bytes, sizes and CRC-32 of a record follow its data and are repeated in the
list of records, which ends with the 64-bit forms. Torch computes positions from that.

Source: PKWARE APPNOTE 6.3; caffe2/serialize/inline_container.cc and miniz.c in PyTorch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megacore import _C
from megacore.checkpoint.torch_files.pickle_writer import encode_pickle
from megacore.checkpoint.torch_files.tensor_bytes import bytes_of
from megacore.durable import CHUNK_BYTES, created, write_all

ALIGNMENT = 64
_FOLDER = "archive"
_MAX32 = 0xFFFFFFFF
# Sizes follow the data; names are UTF-8.
_FLAGS = 0x0808
_ID_RECORD = ".data/serialization_id"
_ID_BYTES = 40

Data = bytes | torch.Tensor


@dataclass(frozen=True)
class _Place:
    """Where a record lies, from the start of the file."""

    name: str
    size: int
    header: int
    start: int

    @property
    def wide(self) -> bool:
        """Whether 32 bits do not hold its size or place."""
        return self.size >= _MAX32 or self.header >= _MAX32

    @property
    def end(self) -> int:
        """First byte behind its data and the sizes that follow them."""
        follow = (24 if self.wide else 16) if self.size else 0
        return self.start + self.size + follow


class TorchFileStream:
    """The bytes of a file that holds a value.

    Args:
        value: What `encode_pickle` can encode, with tensors on any device. They must not change
            before the last chunk was taken.

    Attributes:
        num_bytes: Size of the file, known before the first chunk is made.
        checksum: CRC-32 of the whole file; complete after the last chunk. Costs no second pass.
        checksums: Record -> CRC-32 of its data; complete after the last chunk. The first tensor of
            the value is record "data/0", the next different one "data/1".
    """

    def __init__(self, value: Any) -> None:
        tensors: list[torch.Tensor] = []

        def store(tensor: torch.Tensor) -> str:
            tensors.append(tensor)
            return str(len(tensors) - 1)

        self._records: list[tuple[str, Data]] = [
            ("data.pkl", encode_pickle(value, store)),
            (".format_version", b"1"),
            (".storage_alignment", str(ALIGNMENT).encode()),
            ("byteorder", b"little"),
        ]
        self._records += [(f"data/{i}", tensor) for i, tensor in enumerate(tensors)]
        self._records.append(("version", b"3\n"))
        self._records.append((_ID_RECORD, b"0" * _ID_BYTES))
        self._places = _places(self._records)
        self._directory_start = self._places[-1].end
        self.checksum = 0
        self.checksums: dict[str, int] = {}
        self.num_bytes = self._directory_start + len(_directory(self._places, {}, 0))

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file from its first to its last byte, in pieces of at most a few MiB."""
        at = 0
        for (name, data), place in zip(self._records, self._places, strict=True):
            if name == _ID_RECORD:
                data = self._identifier()
            yield self._counted(_header(place, at))
            crc = 0
            for piece in byte_chunks(data):
                crc = _C.crc32(piece, crc)
                yield piece
            self.checksums[name] = crc
            self.checksum = _C.crc32_combine(self.checksum, crc, place.size)
            if place.size:
                yield self._counted(_sizes_after(place, crc))
            at = place.end
        yield self._counted(_directory(self._places, self.checksums, self._directory_start))

    def _counted(self, piece: bytes) -> bytes:
        self.checksum = _C.crc32(piece, self.checksum)
        return piece

    def start(self, record: str) -> int:
        """Where the data of a record begins, from the start of the file.

        Raises:
            KeyError: There is no such record.
        """
        return {place.name: place.start for place in self._places}[record]

    def _identifier(self) -> bytes:
        """Tells versions of a file apart: checksums of its names and of its contents."""
        names = _C.crc32("\n".join(self.checksums).encode())
        contents = _C.crc32(struct.pack(f"<{len(self.checksums)}I", *self.checksums.values()))
        return f"{names:020d}{contents:020d}".encode()


def byte_chunks(data: Data) -> Iterator[memoryview]:
    """The bytes of a record in pieces; from a GPU one piece at a time is copied."""
    if isinstance(data, bytes):
        if data:
            yield memoryview(data)
        return
    for part in _contiguous_parts(data.detach()):
        flat = part.reshape(-1)
        step = CHUNK_BYTES // flat.element_size()
        for start in range(0, flat.numel(), step):
            piece = flat[start : start + step].cpu()
            yield bytes_of(piece)


def _contiguous_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor in parts that are contiguous; what is not is copied, a few MiB at a time."""
    if tensor.is_contiguous() or tensor.nbytes <= CHUNK_BYTES:
        yield tensor.contiguous().resolve_conj().resolve_neg()
        return
    rows = max(1, CHUNK_BYTES * tensor.shape[0] // tensor.nbytes)
    for start in range(0, tensor.shape[0], rows):
        part = tensor[start : start + rows]
        if len(part) == 1:
            yield from _contiguous_parts(part[0])
        else:
            yield part.contiguous().resolve_conj().resolve_neg()


def _size(data: Data) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes


def _places(records: list[tuple[str, Data]]) -> list[_Place]:
    places: list[_Place] = []
    for name, data in records:
        header = places[-1].end if places else 0
        place = _Place(name, _size(data), header, 0)
        fixed = header + 30 + len(_full_name(name)) + len(_wide_fields(place)) + 4
        places.append(_Place(name, place.size, header, -(-fixed // ALIGNMENT) * ALIGNMENT))
    return places


def _full_name(name: str) -> bytes:
    return f"{_FOLDER}/{name}".encode()


def _wide_fields(place: _Place) -> bytes:
    """The zip64 field with what 32 bits do not hold."""
    values = [place.size, place.size] if place.size >= _MAX32 else []
    if place.header >= _MAX32:
        values.append(place.header)
    if not values:
        return b""
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)


def _header(place: _Place, at: int) -> bytes:
    """What stands before the data of a record; the bytes up to the aligned start are filled."""
    name, wide = _full_name(place.name), _wide_fields(place)
    padding = place.start - at - 30 - len(name) - len(wide) - 4
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fixed = struct.pack(
        "<4s5H3I2H", b"PK\x03\x04", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(extra)
    )
    return fixed + name + extra


def _sizes_after(place: _Place, crc: int) -> bytes:
    """What follows the data of a record."""
    widths = "QQ" if place.wide else "II"
    return struct.pack(f"<4sI{widths}", b"PK\x07\x08", crc, place.size, place.size)


def _directory(places: list[_Place], checksums: dict[str, int], start: int) -> bytes:
    """The list of records at the end of the file."""
    parts = []
    for place in places:
        name, wide = _full_name(place.name), _wide_fields(place)
        size, header = min(place.size, _MAX32), min(place.header, _MAX32)
        fixed = struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 0, 0, _FLAGS, 0, 0, 0, checksums.get(place.name, 0),
            size, size, len(name), len(wide), 0, 0, 0, 0, header,
        )  # fmt: skip
        parts.append(fixed + name + wide)
    listed = b"".join(parts)
    count, end = len(places), start + len(listed)
    wide_end = struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, len(listed), start
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    short = min(count, 0xFFFF)
    end_record = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, min(len(listed), _MAX32),
        min(start, _MAX32), 0,
    )  # fmt: skip
    return listed + wide_end + locator + end_record


def write_torch_file(path: Path, value: Any) -> TorchFileStream:
    """Creates a file that torch.load reads, flushed to the device.

    Args:
        path: File to create; it must not exist.
        value: What it shall hold; see `TorchFileStream`.

    Returns:
        The stream, with size and checksums.

    Raises:
        CheckpointError: The value holds something that the format has no safe form for.
    """
    stream = TorchFileStream(value)
    with created(path) as descriptor:
        for chunk in stream.chunks():
            write_all(descriptor, memoryview(chunk))
    return stream


def torch_file_bytes(value: Any) -> bytes:
    """The bytes of a file that torch.load reads; see `TorchFileStream`."""
    return b"".join(TorchFileStream(value).chunks())

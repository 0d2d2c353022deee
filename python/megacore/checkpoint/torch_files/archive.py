"""The zip archive of a torch file: stored entries only, every field checked against the others.

Source: PKWARE APPNOTE 6.3 (zip), and the layout that torch.save gives it: one top-level folder,
no compression, sizes and CRC-32 in the central directory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megacore import _C
from megacore.checkpoint.torch_files.storages import MappedFile
from megacore.errors import CheckpointError, UnsafeFileError

LOCAL_SIGNATURE = b"PK\x03\x04"
_CENTRAL_SIGNATURE = b"PK\x01\x02"
_END_SIGNATURE = b"PK\x05\x06"
_END64_SIGNATURE = b"PK\x06\x06"
_LOCATOR_SIGNATURE = b"PK\x06\x07"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _SIZES_FOLLOW = 0x0001, 0x0008
_ZIP64_FIELD = 1

# More do not read faster from memory.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Entry:
    """One record of the archive.

    Attributes:
        name: Without the archive's folder.
        start: First byte of its data, from the start of the archive.
        size: Its bytes.
        crc: CRC-32 that the archive states; 0 where the writer left it out.
    """

    name: str
    start: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Listed:
    """An entry as the central directory has it."""

    name: bytes
    flags: int
    crc: int
    size: int
    header: int


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


class Archive:
    """The records of a torch file.

    Args:
        file: The bytes of the archive, no more and no less.
        label: What messages call it.

    Raises:
        CheckpointError: It is damaged or no zip archive.
        UnsafeFileError: It has what torch never writes: compressed, encrypted, overlapping or
            repeated entries, names that leave its folder.
    """

    def __init__(self, file: MappedFile, label: str) -> None:
        self._file = file
        self._label = label
        directory, count, start = self._find_directory()
        listed = list(self._list(directory, count))
        self.folder, self.entries = self._locate(listed, start)

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a record, checked against its CRC-32 where it has one.

        Raises:
            CheckpointError: There is no such record, or it is damaged or longer than `limit`.
        """
        entry = self.entry(name)
        if entry.size > limit:
            raise UnsafeFileError(
                f"{self._label}: record {name}: expected at most {limit} bytes, found {entry.size}"
            )
        if entry.crc:
            self.verify(entry)
        return self._file.read(entry.start, entry.size)

    def entry(self, name: str) -> Entry:
        """A record by name.

        Raises:
            CheckpointError: There is none.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self._label}: has no record {name}") from None

    def verify(self, entry: Entry) -> None:
        """Compares the bytes of a record with its CRC-32.

        Raises:
            CheckpointError: They differ.
        """
        data = self._file.view(entry.start, entry.size)
        found = _C.crc32(data, threads=min(torch.get_num_threads(), _MAX_THREADS))
        if found != entry.crc:
            why = "is damaged" if entry.crc else "was written without a checksum"
            raise CheckpointError(
                f"{self._label}: record {entry.name} {why}: expected CRC-32 {entry.crc:08x}, "
                f"found {found:08x}"
            )

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._label}: {what}: the file is damaged or cut off")

    def _unpack(self, layout: struct.Struct, at: int, signature: bytes, what: str) -> tuple:
        data = self._file.read(at, layout.size) if at >= 0 else b""
        if len(data) != layout.size or data[:4] != signature:
            raise self._damaged(f"there is no {what} at position {at}")
        return layout.unpack(data)[1:]

    def _find_directory(self) -> tuple[bytes, int, int]:
        """The central directory, the number of its entries, and where it starts."""
        tail_start = max(0, self._file.size - _END.size - _MAX16)
        tail = self._file.read(tail_start, self._file.size - tail_start)
        at = len(tail) - _END.size
        while at >= 0:
            at = tail.rfind(_END_SIGNATURE, 0, at + 4)
            comment = int.from_bytes(tail[at + 20 : at + 22], "little")
            if at >= 0 and at + _END.size + comment == len(tail):
                break
            at -= 1
        if at < 0:
            raise self._damaged("the list of records at its end is missing")
        end = tail_start + at
        disk, first_disk, here, count, length, start, _ = self._unpack(
            _END, end, _END_SIGNATURE, "end of the list of records"
        )
        if disk or first_disk or here != count:
            raise UnsafeFileError(f"{self._label}: an archive in several parts")
        if self._file.read(max(end - _LOCATOR.size, 0), 4) == _LOCATOR_SIGNATURE:
            small = (count, length, start)
            end, count, length, start = self._read_end64(end - _LOCATOR.size)
            for value, wide, full in zip(
                small, (count, length, start), (_MAX16, _MAX32, _MAX32), strict=True
            ):
                if value not in (full, wide):
                    raise self._damaged(f"its two ends disagree: {value} and {wide}")
        if start + length != end or count * _CENTRAL.size > length:
            raise self._damaged(
                f"{count} records are listed in {length} bytes at {start}, up to {end}"
            )
        return self._file.read(start, length), count, start

    def _read_end64(self, locator: int) -> tuple[int, int, int, int]:
        _, end, disks = self._unpack(_LOCATOR, locator, _LOCATOR_SIGNATURE, "zip64 locator")
        size, _, _, disk, first_disk, here, count, length, start = self._unpack(
            _END64, end, _END64_SIGNATURE, "zip64 end of the list of records"
        )
        if disk or first_disk or disks > 1 or here != count:
            raise UnsafeFileError(f"{self._label}: an archive in several parts")
        if end + 12 + size != locator:
            raise self._damaged(f"the zip64 end has {size} bytes, which do not reach the locator")
        return end, count, length, start

    def _list(self, directory: bytes, count: int) -> Iterator[_Listed]:
        at = 0
        for _ in range(count):
            if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != _CENTRAL_SIGNATURE:
                raise self._damaged(f"the list of records breaks off after {at} bytes")
            fields = _CENTRAL.unpack_from(directory, at)[1:]
            flags, method, crc, packed, size = fields[2], fields[3], *fields[6:9]
            name_size, extra_size, comment_size, disk = fields[9:13]
            header = fields[15]
            name_at = at + _CENTRAL.size
            extra_at = name_at + name_size
            at = extra_at + extra_size + comment_size
            if at > len(directory):
                raise self._damaged(f"the list of records breaks off after {len(directory)} bytes")
            name = directory[name_at:extra_at]
            wide = self._zip64(directory[extra_at : extra_at + extra_size])
            size, packed, header = (
                next(wide, -1) if value == _MAX32 else value for value in (size, packed, header)
            )
            if min(size, packed, header) < 0:
                raise self._damaged(f"record {_text(name)} lacks its zip64 sizes")
            if method or packed != size:
                raise UnsafeFileError(
                    f"{self._label}: record {_text(name)} is compressed, which torch never does"
                )
            if flags & _ENCRYPTED or disk:
                raise UnsafeFileError(
                    f"{self._label}: record {_text(name)} is encrypted or elsewhere"
                )
            yield _Listed(name, flags, crc, size, header)
        if at != len(directory):
            raise self._damaged(f"{len(directory) - at} bytes follow the list of {count} records")

    def _zip64(self, extra: bytes) -> Iterator[int]:
        """The 64-bit values of an entry, in the order size, packed size, header."""
        at = 0
        while at + 4 <= len(extra):
            kind, size = struct.unpack_from("<2H", extra, at)
            if kind == _ZIP64_FIELD and at + 4 + size <= len(extra):
                return iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            at += 4 + size
        return iter(())

    def _locate(self, listed: list[_Listed], end: int) -> tuple[str, dict[str, Entry]]:
        """Reads the header before each record's data; every byte must belong to one record."""
        folder = None
        entries: dict[str, Entry] = {}
        behind, previous = 0, ""
        for item in sorted(listed, key=lambda item: item.header):
            name = self._checked_name(item.name)
            own, _, rest = name.partition("/")
            if folder is None:
                folder = own
            if own != folder or not rest:
                raise UnsafeFileError(
                    f"{self._label}: record {name} lies outside of the folder {folder}"
                )
            if item.header < behind:
                raise UnsafeFileError(
                    f"{self._label}: record {name} overlaps record {previous or name}"
                )
            start = self._data_start(item)
            behind, previous = start + item.size, name
            if behind > end:
                raise self._damaged(
                    f"record {name} has {item.size} bytes at {start}, past its end {end}"
                )
            if rest in entries:
                raise UnsafeFileError(f"{self._label}: there are two records {name}")
            entries[rest] = Entry(rest, start, item.size, item.crc)
        if folder is None:
            raise self._damaged("it has no records")
        return folder, entries

    def _checked_name(self, raw: bytes) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the name {raw!r} of a record is not UTF-8") from None
        if (
            not name.isprintable()
            or "\\" in name
            or name.startswith("/")
            or ".." in name.split("/")
        ):
            raise UnsafeFileError(f"{self._label}: a record is named {name!r}")
        return name

    def _data_start(self, item: _Listed) -> int:
        _, flags, method, _, _, crc, packed, size, name_size, extra_size = self._unpack(
            _LOCAL, item.header, LOCAL_SIGNATURE, f"record {_text(item.name)}"
        )
        name = self._file.read(item.header + _LOCAL.size, name_size)
        unstated = flags & _SIZES_FOLLOW and not (crc or packed or size)
        stated = crc == item.crc and size == packed and size in (item.size, _MAX32)
        if method or flags & _ENCRYPTED or name != item.name or not (unstated or stated):
            raise UnsafeFileError(
                f"{self._label}: record {_text(item.name)} is described in two ways, at its place "
                f"{item.header} and in the list of records"
            )
        return item.header + _LOCAL.size + name_size + extra_size

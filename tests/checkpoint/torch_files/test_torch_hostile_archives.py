"""Archives with lies in them, and files of the old format: refused with one typed error."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import FOUR_FLOATS, archive, pickled, tensor, torch_file

from megacore.checkpoint.torch_files import read_torch_file, torch_file_bytes
from megacore.errors import CheckpointError, UnsafeFileError

VALUE = {"weight": torch.arange(100.0), "step": 3}
BODY = tensor((4,), (1,))

# Positions of fields: (in the header before the data, in the list of records).
FIELDS = {"flags": (6, 8), "method": (8, 10), "crc": (14, 16), "packed": (18, 20), "size": (22, 24)}


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def find(data: bytes, signature: bytes, number: int = 0) -> int:
    at = -1
    for _ in range(number + 1):
        at = data.index(signature, at + 1)
    return at


def local(data: bytes, field: str, value: int, record: int = 0) -> bytes:
    size = 2 if field in ("flags", "method") else 4
    at = find(data, b"PK\x03\x04", record) + FIELDS[field][0]
    return patched(data, at, value.to_bytes(size, "little"))


def listed(data: bytes, field: str, value: int, record: int = 0) -> bytes:
    size = 2 if field in ("flags", "method") else 4
    at = find(data, b"PK\x01\x02", record) + FIELDS[field][1]
    return patched(data, at, value.to_bytes(size, "little"))


def offset(data: bytes, record: int, value: int) -> bytes:
    return patched(data, find(data, b"PK\x01\x02", record) + 42, struct.pack("<I", value))


# Sizes stand at the place of a record here, and only in the list of records there.
PLAIN = torch_file(BODY, data_0=FOUR_FLOATS)
OURS = torch_file_bytes(VALUE)
END = PLAIN.rindex(b"PK\x05\x06")
RECORDS = {"data.pkl": pickled(BODY), "data/0": FOUR_FLOATS}

UNSAFE = {
    "deflated": archive(RECORDS, method=zipfile.ZIP_DEFLATED),
    "bzip2": archive(RECORDS, method=zipfile.ZIP_BZIP2),
    "zip bomb": archive({**RECORDS, "data/0": bytes(10_000_000)}, method=zipfile.ZIP_DEFLATED),
    "encrypted": listed(PLAIN, "flags", 1),
    "encrypted at its place": local(PLAIN, "flags", 1),
    "method differs at its place": local(PLAIN, "method", 8),
    "size differs at its place": local(PLAIN, "size", 5),
    "checksum differs at its place": local(PLAIN, "crc", 5),
    "packed size differs": listed(PLAIN, "packed", 5),
    "name differs at its place": PLAIN.replace(b"archive/data.pkl", b"archive/evil.pkl", 1),
    "folder differs": archive({"archive/data.pkl": b"N.", "other/data/0": b""}, folder=""),
    "no folder": archive(RECORDS, folder=""),
    "parent": archive({**RECORDS, "../../etc/passwd": b"x"}),
    "absolute": archive({"/archive/data.pkl": b"N."}, folder=""),
    "backslash": archive({**RECORDS, "..\\x": b"x"}),
    "newline in a name": archive({**RECORDS, "a\nb": b"x"}),
    "overlapping records": offset(PLAIN, 1, 0),
    "TorchScript": archive({**RECORDS, "constants.pkl": b"N.", "code/a.py": b"x"}),
    "several disks": patched(PLAIN, END + 4, b"\x01"),
}

DAMAGED = {
    "empty": b"",
    "one byte": b"P",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "safetensors": struct.pack("<Q", 2) + b"{}" + bytes(16),
    "tar": b"sys_info".ljust(512, b"\0"),
    "zip of something else": archive({"a.txt": b"x"}),
    "no records": archive({}),
    "no end": PLAIN[:END],
    "end elsewhere": PLAIN + bytes(3),
    "wrong comment length": patched(PLAIN, END + 20, b"\x05"),
    "more records than listed": patched(PLAIN, END + 8, b"\x09\x00\x09\x00"),
    "fewer records than listed": patched(PLAIN, END + 8, b"\x02\x00\x02\x00"),
    "list elsewhere": patched(PLAIN, END + 16, struct.pack("<I", 3)),
    "record past the end": listed(listed(OURS, "size", 1 << 20), "packed", 1 << 20),
    "header past the end": offset(PLAIN, 0, 1 << 30),
    "header in a record": offset(PLAIN, 0, 5),
    "zip64 sizes missing": listed(listed(PLAIN, "size", 0xFFFFFFFF), "packed", 0xFFFFFFFF),
    "name in Latin-1": patched(PLAIN, find(PLAIN, b"PK\x01\x02") + 46, b"\xff"),
    "big endian": archive({**RECORDS, "byteorder": b"big"}),
    "unknown endianness": archive({**RECORDS, "byteorder": b"x"}),
    "value followed by more": archive({**RECORDS, "data.pkl": pickled(BODY) + b"more"}),
    "value missing": archive({"data/0": FOUR_FLOATS}),
    "damaged value": patched(PLAIN, PLAIN.index(b"FloatStorage"), b"f"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAFE)
def test_lies_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(UNSAFE[case])
    with pytest.raises(UnsafeFileError, match="bad"):
        read_torch_file(path)


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_found(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(CheckpointError, match="bad"):
        read_torch_file(path)


def test_the_archive_that_is_changed_above_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.pt"
    for data in (PLAIN, archive({**RECORDS, "byteorder": b"little"}), patched(PLAIN, 0, b"PK")):
        path.write_bytes(data)
        assert torch.equal(read_torch_file(path, verify=True), torch.arange(4.0))


def test_a_record_past_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(DAMAGED["record past the end"])
    with pytest.raises(CheckpointError, match=r"record archive/data\.pkl has 1048576 bytes at"):
        read_torch_file(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(DAMAGED["text"])
    with pytest.raises(CheckpointError, match="pointer of Git LFS"):
        read_torch_file(path)


def test_two_records_of_one_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("archive/data.pkl", pickled(BODY))
        out.writestr("archive/data/0", FOUR_FLOATS)
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("archive/data.pkl", pickled(b"N"))
    path = tmp_path / "bad.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UnsafeFileError, match=r"two records archive/data\.pkl"):
        read_torch_file(path)


@pytest.mark.parametrize("old", [False, True])
def test_every_file_cut_short_is_refused(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(PLAIN)
    if old:
        torch.save(torch.arange(4.0), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    read_torch_file(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut"):
            read_torch_file(path)


def test_a_flipped_bit_of_a_tensor_is_found_when_asked(tmp_path: Path) -> None:
    data = torch_file_bytes(VALUE)
    path = tmp_path / "file.pt"
    at = data.index(VALUE["weight"].numpy().tobytes()) + 7
    path.write_bytes(patched(data, at, bytes([data[at] ^ 8])))
    assert not torch.equal(read_torch_file(path)["weight"], VALUE["weight"])
    with pytest.raises(CheckpointError, match="record data/0 is damaged: expected CRC-32"):
        read_torch_file(path, verify=True)


def test_files_without_checksums_are_read_but_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(VALUE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_torch_file(path)["weight"], VALUE["weight"])
    with pytest.raises(CheckpointError):
        read_torch_file(path, verify=True)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=str(path)):
            read_torch_file(path)


@pytest.mark.parametrize("span", [(-1, 10), (0, -1), (0, 1 << 40), (1 << 40, 10), (0, 0)])
def test_spans_outside_of_the_file_are_refused(tmp_path: Path, span: tuple[int, int]) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(torch_file_bytes(VALUE))
    with pytest.raises(CheckpointError, match="file"):
        read_torch_file((path, *span))

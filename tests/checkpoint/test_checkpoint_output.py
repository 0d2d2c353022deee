"""Files written past the page cache hold what was given, whatever the file system takes."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from megacore.checkpoint.output import _BLOCK_BYTES, BlockOutput
from megacore.durable import created


def write(path: Path, data: bytes, piece_bytes: int) -> None:
    with created(path) as descriptor, BlockOutput(descriptor) as output:
        for start in range(0, len(data), piece_bytes):
            output.write(data[start : start + piece_bytes])


@pytest.mark.parametrize("size", [0, 1, 4097, _BLOCK_BYTES, _BLOCK_BYTES + 1, 3 * _BLOCK_BYTES + 7])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 3_000_001, 5 * _BLOCK_BYTES])
def test_the_file_holds_what_was_written(tmp_path: Path, size: int, piece_bytes: int) -> None:
    data = random.Random(size).randbytes(size)
    write(tmp_path / "file", data, piece_bytes)
    assert (tmp_path / "file").read_bytes() == data


def test_a_file_system_that_does_not_take_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no unbuffered writes here")
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    data = random.Random(1).randbytes(2 * _BLOCK_BYTES + 5)
    write(tmp_path / "file", data, 1 << 20)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("refused_from", [0, 1])
def test_a_file_system_that_takes_the_flag_and_refuses_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_from: int
) -> None:
    real, direct = os.write, []

    def refuse(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(len(data))
            if len(direct) > refused_from:
                raise OSError(errno.EINVAL, "no unbuffered writes here")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", refuse)
    data = random.Random(2).randbytes(3 * _BLOCK_BYTES + 5)
    write(tmp_path / "file", data, 1 << 20)
    assert (tmp_path / "file").read_bytes() == data
    # One refusal is enough: it is not tried again.
    assert len(direct) <= refused_from + 1


def test_a_write_that_is_cut_short_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: 1 << 20]))
    data = random.Random(3).randbytes(2 * _BLOCK_BYTES)
    write(tmp_path / "file", data, 1 << 20)
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_device_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", bytes(_BLOCK_BYTES), 1 << 20)

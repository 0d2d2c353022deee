"""Saving in another process: what is published, how failures are told, what kills leave behind."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from checkpoint_cases import make_tensors, make_values, read_seed
from torch.distributed import FileStore

from megacore.checkpoint import SaveDirectory
from megacore.checkpoint.background import BackgroundWriter
from megacore.checkpoint.background_process import serve
from megacore.checkpoint.channel import Channel
from megacore.checkpoint.claim import LOCK
from megacore.checkpoint.content import Content, collect
from megacore.checkpoint.shared_copy import SharedMemory
from megacore.checkpoint.store_writers import StoreWriters, address_of
from megacore.errors import CheckpointError


class Fork:
    """A fork of this process: this module's tests start many, and importing torch takes seconds."""

    def __init__(self, channel_descriptor: int, memory_descriptor: int) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        try:
            channel = socket.socket(fileno=os.dup(channel_descriptor))
            for descriptor in range(3, 256):
                if descriptor not in (channel.fileno(), memory_descriptor):
                    with suppress(OSError):
                        os.close(descriptor)
            serve(Channel(channel), SharedMemory(memory_descriptor))
        finally:
            os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def content_of(seed: int, *, size: int = 61) -> Content:
    return collect(seed, tensors=make_tensors(seed, size=size), values=make_values(seed))


@pytest.fixture
def writer(tmp_path: Path) -> BackgroundWriter:
    made = BackgroundWriter([tmp_path / "a", tmp_path / "b"], launch=Fork)
    made.wait_until_ready()
    yield made
    made.close()


def test_a_copy_is_published_whatever_happens_to_the_tensors(
    tmp_path: Path, writer: BackgroundWriter
) -> None:
    for seed, directory in ((3, 0), (5, 1), (7, 0)):
        tensors = make_tensors(seed, size=61 * seed)
        content = collect(seed, tensors=tensors, values=make_values(seed))
        writer.submit(content, directory=directory)
        for group in tensors.values():
            for tensor in group.values():
                tensor.zero_()
        assert writer.in_flight == seed
        assert writer.wait()["bytes"] == content.num_bytes
        assert writer.in_flight is None
        assert read_seed(tmp_path / "ab"[directory], size=61 * seed) == seed


def test_memory_that_was_prepared_is_not_found_again(
    tmp_path: Path, writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(3)
    writer.prepare([chunk.data.nbytes for chunk in content.chunks])

    def refuse(*_: object) -> None:
        raise AssertionError("memory was asked for at the save")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        patched.setattr(mmap, "mmap", refuse)
        writer.submit(content)
    writer.wait()
    assert read_seed(tmp_path / "a") == 3


def test_memory_that_is_not_there_is_noticed_before_training(writer: BackgroundWriter) -> None:
    with pytest.raises(CheckpointError, match="--async-save: no memory for a copy of"):
        writer.prepare([1 << 60])


def test_a_real_program_writes_too(tmp_path: Path) -> None:
    writer = BackgroundWriter([tmp_path])
    try:
        writer.wait_until_ready()
        for seed in (1, 2):
            writer.submit(content_of(seed))
            writer.wait()
            assert read_seed(tmp_path) == seed
    finally:
        writer.close()


def test_the_directory_belongs_to_the_writer_until_it_ends(
    tmp_path: Path, writer: BackgroundWriter
) -> None:
    with pytest.raises(CheckpointError, match=f"process {writer.pid} "):
        SaveDirectory(tmp_path / "a", wait_s=0.2)
    writer.submit(content_of(4))
    writer.wait()
    refused = BackgroundWriter([tmp_path / "a"], wait_s=0.2, launch=Fork)
    with pytest.raises(CheckpointError, match="another process is writing"):
        refused.wait_until_ready()
    refused.close()
    writer.close()
    SaveDirectory(tmp_path / "a", wait_s=0.2).close()
    assert (tmp_path / "a" / LOCK).exists()


def test_later_iterations_are_refused_at_the_start(tmp_path: Path) -> None:
    with SaveDirectory(tmp_path) as directory:
        directory.save(9, tensors=make_tensors(9), values=make_values(9))
    refused = BackgroundWriter([tmp_path], start_iteration=8, launch=Fork)
    with pytest.raises(CheckpointError, match="already holds iteration 9"):
        refused.wait_until_ready()
    refused.close()


def test_a_failure_is_told_and_the_next_save_works(
    tmp_path: Path, writer: BackgroundWriter
) -> None:
    place = tmp_path / "a" / "iter_0000006"
    place.mkdir()
    (place / "foreign.txt").write_text("keep me")
    writer.submit(content_of(6))
    with pytest.raises(CheckpointError, match="iter_0000006: exists already"):
        writer.wait()
    assert (place / "foreign.txt").read_text() == "keep me"
    writer.submit(content_of(7))
    writer.wait()
    assert read_seed(tmp_path / "a") == 7


def test_a_killed_writer_is_noticed(tmp_path: Path, writer: BackgroundWriter) -> None:
    writer.submit(content_of(1))
    writer.wait()
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.is_finished()
    writer.in_flight = 2
    assert writer.is_finished(10.0)
    with pytest.raises(CheckpointError, match="has ended unexpectedly"):
        writer.wait()
    with pytest.raises(CheckpointError, match="has ended unexpectedly"):
        writer.submit(content_of(3))
    assert read_seed(tmp_path / "a") == 1


def test_processes_meet_at_a_store(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"), -1)
    address = address_of(store, "here")
    got: dict[int, list[list[object]]] = {}

    def meet(rank: int) -> None:
        writers = StoreWriters(address.connect(), rank=rank, size=3, ending=threading.Event())
        got[rank] = [writers.exchange({"rank": rank, "turn": turn}) for turn in range(4)]

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = [[{"rank": rank, "turn": turn} for rank in range(3)] for turn in range(4)]
    assert got == dict.fromkeys(range(3), expected)


@pytest.mark.parametrize("how", ["told", "asked"])
def test_nobody_waits_for_a_process_that_has_given_up(tmp_path: Path, how: str) -> None:
    address = address_of(FileStore(str(tmp_path / "store"), -1), "here")
    ending = threading.Event()
    waiting = StoreWriters(address.connect(), rank=0, size=2, ending=ending)
    other = StoreWriters(address.connect(), rank=1, size=2, ending=threading.Event())
    timer = threading.Timer(0.2, other.abandon if how == "told" else ending.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="another process of the run has ended"):
        waiting.exchange(1)
    assert time.monotonic() - start < 20
    timer.join()


def test_a_store_in_memory_cannot_be_shared() -> None:
    with pytest.raises(CheckpointError, match="cannot reach the HashStore"):
        address_of(torch.distributed.HashStore(), "x")

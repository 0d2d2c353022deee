"""Damaged files: always noticed, and the message says which file and which tensor."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from checkpoint_cases import all_loaded, make_tensors, make_values

from megacore.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from megacore.errors import CheckpointError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 4, tensors=make_tensors(4, size=5), values=make_values(4))


def load_everything(directory: Path) -> object:
    path = find_checkpoint(directory)
    assert path is not None
    return all_loaded(path)


def test_a_flipped_bit_in_any_byte_is_noticed(saved: Path) -> None:
    """One random bit of many bytes of every file, and of all of the small ones, one at a time."""
    chance = random.Random(8)
    whole = load_everything(saved.parent)
    flips = 0
    for file in sorted(saved.iterdir()):
        raw = file.read_bytes()
        positions = range(len(raw))
        if len(raw) > 900:
            positions = sorted({*chance.sample(positions, 800), *positions[:64], *positions[-64:]})
        for position in positions:
            broken = bytearray(raw)
            broken[position] ^= 1 << chance.randrange(8)
            file.write_bytes(broken)
            with pytest.raises(CheckpointError) as caught:
                load_everything(saved.parent)
            assert str(file) in str(caught.value)
            flips += 1
        file.write_bytes(raw)
    assert flips > 2000
    assert load_everything(saved.parent) == whole


def test_the_damaged_tensor_is_named(saved: Path) -> None:
    """Each tensor in turn: found by its bytes, which are unlike those of any other."""
    file = saved / "__0_0.distcp"
    raw = file.read_bytes()
    for group, tensors in make_tensors(4, size=5).items():
        for name, tensor in tensors.items():
            data = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
            if len(data) < 8:
                continue
            broken = bytearray(raw)
            broken[raw.index(data) + len(data) // 2] ^= 0x10
            file.write_bytes(broken)
            with pytest.raises(CheckpointError, match=f"tensor {name} is damaged"):
                Checkpoint(saved).tensors(group)
            targets = {n: torch.empty_like(t) for n, t in tensors.items()}
            with pytest.raises(CheckpointError, match=f"tensor {name} is damaged"):
                Checkpoint(saved).load_into(group, targets)
    file.write_bytes(raw)


def test_large_chunks_are_verified_while_they_are_read(tmp_path: Path) -> None:
    """Those that are read right into their targets, at both ends and inside."""
    tensor = torch.arange(300_000, dtype=torch.int32)
    path = save_checkpoint(tmp_path, 4, tensors={"model": {"big": tensor}}, values={})
    file = path / "__0_0.distcp"
    raw = file.read_bytes()
    start = raw.index(bytes(tensor[:8].view(torch.uint8).tolist()))
    for position in (0, 30, start, start + 600_000, start + 4 * len(tensor) - 1, len(raw) - 1):
        broken = bytearray(raw)
        broken[position] ^= 1
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"__0_0.distcp: tensor big is damaged"):
            Checkpoint(path).load_into("model", {"big": torch.empty_like(tensor)})
    file.write_bytes(raw)
    target = torch.empty_like(tensor)
    Checkpoint(path).load_into("model", {"big": target})
    assert torch.equal(target, tensor)


def test_truncation_and_extra_bytes_are_noticed(saved: Path) -> None:
    for file in sorted(saved.iterdir()):
        raw = file.read_bytes()
        lengths = {0, 1, 7, 8, 9, len(raw) // 2, len(raw) - 1}
        for content in [raw[:length] for length in lengths] + [raw + b"\0", raw + raw]:
            file.write_bytes(content)
            with pytest.raises(CheckpointError) as caught:
                load_everything(saved.parent)
            assert file.name in str(caught.value)
        file.write_bytes(raw)


def test_missing_files_are_named(saved: Path) -> None:
    for file in sorted(saved.iterdir()):
        raw = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            load_everything(saved.parent)
        file.write_bytes(raw)


@pytest.mark.parametrize("content", [b"", b"abc", b"-3", b"1.5", b"\xff\xfe", b"12 13"])
def test_a_wrong_tracker_is_named(saved: Path, content: bytes) -> None:
    (saved.parent / "latest_checkpointed_iteration.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"latest_checkpointed_iteration\.txt: expected"):
        load_checkpoint(saved.parent)


def test_a_tracker_may_end_in_a_line_break(saved: Path) -> None:
    (saved.parent / "latest_checkpointed_iteration.txt").write_bytes(b"4\n")
    assert load_checkpoint(saved.parent).iteration == 4


def test_a_tracker_without_its_iteration_lists_what_is_there(saved: Path) -> None:
    (saved.parent / "latest_checkpointed_iteration.txt").write_bytes(b"9")
    with pytest.raises(CheckpointError, match=r"iter_0000009: not found.*there: 4"):
        load_checkpoint(saved.parent)


def test_nothing_stored_is_executed(saved: Path, tmp_path: Path) -> None:
    """A pickle that would run a program, where only its checksum stands in the way, or nothing."""
    ran = tmp_path / "ran"

    class Program:
        def __reduce__(self) -> object:
            return os.mkdir, (str(ran),)

    for name in ("common.pt", ".metadata"):
        raw = (saved / name).read_bytes()
        if name == "common.pt":
            torch.save({"x": Program()}, saved / name)
        else:
            (saved / name).write_bytes(pickle.dumps(Program()))
        with pytest.raises(CheckpointError, match=name):
            load_everything(saved.parent)
        checksums = (saved / "checksums.json").read_bytes()
        (saved / "checksums.json").unlink()
        with pytest.raises(CheckpointError):
            Checkpoint(saved)
        (saved / "checksums.json").write_bytes(checksums)
        (saved / name).write_bytes(raw)
    assert not ran.exists()
    load_everything(saved.parent)


def test_exchanged_files_are_noticed(tmp_path: Path) -> None:
    """Files of another iteration that fit in name and size."""
    paths = [
        save_checkpoint(tmp_path, seed, tensors=make_tensors(seed, size=5), values=make_values(4))
        for seed in (4, 5)
    ]
    for name in ("__0_0.distcp", "common.pt", ".metadata"):
        own, other = ((path / name).read_bytes() for path in paths)
        if own == other:
            continue
        assert len(own) == len(other)
        (paths[1] / name).write_bytes(own)
        with pytest.raises(CheckpointError, match=name):
            load_everything(tmp_path)
        (paths[1] / name).write_bytes(other)
    load_everything(tmp_path)


def test_a_later_format_asks_for_an_update(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megacore.checkpoint.manifest.FORMAT_VERSION", 2)
    save_checkpoint(saved.parent, 5, tensors={}, values={})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2.*update megacore"):
        load_checkpoint(saved.parent)

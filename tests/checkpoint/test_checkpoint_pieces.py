"""Checkpoints written by several processes in pieces, read into any layout."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megacore.checkpoint import SaveDirectory, VocabularyRows, load_checkpoint
from megacore.checkpoint.content import collect, snapshot, snapshot_bytes
from megacore.checkpoint.manifest import FileRecord, Manifest, digest_of, read_manifest
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.torch_files.dcp import (
    DcpMetadata,
    TensorEntry,
    encode_dcp_metadata,
    read_dcp_metadata,
)
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout, full_tensor


class Threads:
    """Writers that are threads of this process."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size
        self.members = [Member(self, rank, size) for rank in range(size)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = json.loads(json.dumps(value))
        self._barrier.wait(30)
        values = list(self._values)
        self._barrier.wait(30)
        return values

    def run(self, work: Callable[[Member], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.members)) as pool:
            futures = [pool.submit(work, member) for member in self.members]
        return [future.exception() or future.result() for future in futures]


class Member:
    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self._threads, self.rank, self.size = threads, rank, size

    def exchange(self, value: Any) -> list[Any]:
        return self._threads.exchange(self.rank, value)


FULL = {
    "column.weight": (torch.randn(24, 5), 0, 1),
    "gated.weight": (torch.randn(48, 7), 0, 2),
    "row.weight": (torch.randn(3, 36), 1, 1),
    "norm.weight": (torch.randn(11), None, 1),
    "embedding.word_embeddings.weight": (torch.randn(36, 4).bfloat16(), 0, 1),
}


def layout_of(name: str, shards: int, shard: int, *, rows: int | None = None) -> ParamLayout:
    full, dim, fold = FULL[name]
    shape = tuple(full.shape) if rows is None else (rows, *full.shape[1:])
    if dim is None or shards == 1:
        return ParamLayout(name=name, full_shape=shape)
    return ParamLayout(
        name=name, full_shape=shape, shard_dim=dim, num_shards=shards, shard=shard, fold=fold
    )


def parts_of(rank: int, shards: int, ranges: int) -> list[Part]:
    """What process `rank` of shards * ranges has: a flat range of its part of every tensor."""
    shard, piece = rank % shards, rank // shards
    parts = []
    for name in FULL:
        layout = layout_of(name, shards, shard)
        if not layout.is_sharded and shard > 0:
            continue
        local = layout.local(FULL[name][0]).reshape(-1)
        # Cuts at odd places, some of them empty.
        cuts = [local.numel() * i // ranges for i in range(ranges)] + [local.numel()]
        start, stop = cuts[piece], cuts[piece + 1]
        if stop > start:
            parts.append(Part(layout, local[start:stop], start))
    return parts


def save(directory: Path, shards: int, ranges: int, iteration: int = 3) -> list[Any]:
    threads = Threads(shards * ranges)

    def work(member: Member) -> Path:
        with SaveDirectory(directory, writers=member) as target:
            return target.save(
                iteration,
                tensors={"rng": {f"rank{member.rank}": torch.tensor([member.rank])}},
                values={"by": member.rank},
                parts={"model": parts_of(member.rank, shards, ranges)},
            )

    return threads.run(work)


@pytest.mark.parametrize(
    ("shards", "ranges"), [(1, 1), (1, 3), (2, 1), (3, 1), (2, 2), (6, 2), (4, 3)]
)
def test_any_layout_to_any_other(tmp_path: Path, shards: int, ranges: int) -> None:
    assert save(tmp_path, shards, ranges) == [tmp_path / "iter_0000003"] * (shards * ranges)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.values == {"by": 0}
    assert sorted(checkpoint.groups) == ["model", "rng"]
    stored = checkpoint.tensors("model")
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        name: full.tolist() for name, (full, _, _) in FULL.items()
    }
    assert sorted(checkpoint.tensors("rng")) == sorted(f"rank{r}" for r in range(shards * ranges))
    for wanted in (1, 2, 4, 6):
        for shard in range(wanted):
            layouts = {f"mine.{name}": layout_of(name, wanted, shard) for name in FULL}
            targets = {
                name: torch.zeros(layout.local_shape, dtype=FULL[layout.name][0].dtype)
                for name, layout in layouts.items()
            }
            assert checkpoint.load_into("model", targets, layouts=layouts) == []
            for name, layout in layouts.items():
                assert torch.equal(targets[name], layout.local(FULL[layout.name][0])), name


@pytest.mark.parametrize("rows", [34, 36, 48])
def test_vocabulary_rows_of_a_part(tmp_path: Path, rows: int) -> None:
    save(tmp_path, 3, 2)
    name = "embedding.word_embeddings.weight"
    locals_, layouts = [], []
    for shard in range(2):
        layout = layout_of(name, 2, shard, rows=rows)
        target = torch.full(layout.local_shape, 7.0, dtype=torch.bfloat16)
        notes = load_checkpoint(tmp_path).load_into(
            "model",
            {name: target},
            layouts={name: layout},
            vocabulary=VocabularyRows(size=33),
            others=FULL,
        )
        assert len(notes) == (rows != 36)
        locals_.append(target)
        layouts.append(layout)
    full = full_tensor(layouts, locals_)
    common = min(rows, 36)
    assert torch.equal(full[:common], FULL[name][0][:common])
    assert bool((full[common:] == 7.0).all())


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the list of chunks of a checkpoint, with its checksum."""
    about = read_dcp_metadata(path)
    entries = {name: asdict(entry) for name, entry in about.entries.items()}
    change(entries)
    changed = {name: TensorEntry(**entry) for name, entry in entries.items()}
    raw = encode_dcp_metadata(DcpMetadata(changed, about.storage))
    (path / ".metadata").write_bytes(raw)
    known = read_manifest(path)
    record = FileRecord(len(raw), digest_of(raw))
    manifest = Manifest(known.iteration, {**known.files, ".metadata": record})
    (path / "checksums.json").write_bytes(manifest.encode())


def test_missing_chunks_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 2, 2)[0]

    def remove(entries: dict[str, Any]) -> None:
        entries["column.weight"]["chunks"] = entries["column.weight"]["chunks"][1:]

    edited(path, remove)
    with pytest.raises(CheckpointError, match=r"tensor column.weight is incomplete: only"):
        load_checkpoint(tmp_path).tensors("model")
    target = torch.full((24, 5), 7.0)
    with pytest.raises(CheckpointError, match=r"column.weight: incomplete in the checkpoint"):
        load_checkpoint(tmp_path).load_into("model", {"column.weight": target}, others=FULL)
    assert bool((target == 7.0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (25, 5)}, "incomplete"),
        ({"shape": (5,)}, "column.weight"),
        ({"dtype": torch.float64}, "column.weight"),
        ({"chunks": (((0, 0), (24, 5)), ((12, 0), (12, 5)))}, "column.weight"),
        ({"chunks": (((0, 0), (24, 5)),)}, "smaller than its shape"),
        ({"chunks": (((1, 0), (23, 5)),)}, "no file holds its chunk"),
    ],
)
def test_impossible_chunks_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = save(tmp_path, 2, 1)[0]
    edited(path, lambda entries: entries["column.weight"].update(change))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path).tensors("model")


def test_what_is_not_given_as_a_whole_is_not_published(tmp_path: Path) -> None:
    parts = parts_of(0, 2, 1)
    with SaveDirectory(tmp_path) as target:
        with pytest.raises(CheckpointError, match=r"not given as a whole: only \d+ of its"):
            target.save(3, tensors={}, values={}, parts={"model": parts})
        with pytest.raises(CheckpointError, match=r"not given as a whole: .* overlap"):
            target.save(3, tensors={}, values={}, parts={"model": [*parts, *parts]})
    assert [entry.name for entry in tmp_path.iterdir()] == [".megacore.lock"]


def test_chunks_are_plain_tensors_for_pytorch(tmp_path: Path) -> None:
    """Flat ranges of parts, read by torch.distributed.checkpoint as any sharded tensor."""
    path = save(tmp_path, 3, 2)[0]
    found = {name: torch.empty_like(full) for name, (full, _, _) in FULL.items()}
    dcp.load(found, checkpoint_id=path, no_dist=True)
    assert all(torch.equal(found[name], full) for name, (full, _, _) in FULL.items())


def test_a_snapshot_does_not_change_with_the_tensors(tmp_path: Path) -> None:
    threads = Threads(4)
    wanted = {name: full.clone() for name, (full, _, _) in FULL.items()}

    def work(member: Member) -> Path:
        parts = [Part(p.layout, p.data.clone(), p.start) for p in parts_of(member.rank, 2, 2)]
        content = collect(3, tensors={}, values={}, parts={"model": parts})
        held = snapshot(content, torch.zeros(snapshot_bytes(content), dtype=torch.uint8))
        for part in parts:
            part.data.fill_(9)
        with SaveDirectory(tmp_path, writers=member) as target:
            return target.write(held)

    assert threads.run(work) == [tmp_path / "iter_0000003"] * 4
    stored = load_checkpoint(tmp_path).tensors("model")
    assert all(torch.equal(stored[name], full) for name, full in wanted.items())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_writer_that_fails_fails_all_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save(tmp_path, 3, 1)
    from megacore.checkpoint import save as module

    write = module.write_chunks

    def limited(path: Path, content: Any, stacks: Any, rank: int) -> Any:
        if rank == failing:
            raise OSError(28, "No space left on device", str(path))
        return write(path, content, stacks, rank)

    monkeypatch.setattr(module, "write_chunks", limited)
    errors = save(tmp_path, 3, 1, iteration=4)
    assert [type(error) for error in errors] == [CheckpointError] * 3
    assert all("No space left on device" in str(error) for error in errors)
    others = [str(error) for rank, error in enumerate(errors) if rank != failing]
    assert all(text.startswith(f"rank {failing}: ") for text in others)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).iteration == 3
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".writing")]


def test_needed_space_is_that_of_all_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megacore.checkpoint import save as module

    largest = max(full.numel() * full.element_size() for full, _, _ in FULL.values())
    total = sum(math.prod(full.shape) * full.element_size() for full, _, _ in FULL.values())
    assert total > largest
    monkeypatch.setattr(module, "free_bytes", lambda _: (1 << 20) + total)
    errors = save(tmp_path, 3, 1)
    assert all("not enough space" in str(error) for error in errors)

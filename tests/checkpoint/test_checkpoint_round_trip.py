"""What is saved comes back bit for bit, and the files are what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from checkpoint_cases import differences, make_tensors, make_values, same
from safetensors.torch import load_file

from megacore.checkpoint import Checkpoint, VocabularyRows, load_checkpoint, save_checkpoint
from megacore.checkpoint.durable import CHUNK_BYTES
from megacore.checkpoint.tensor_file import DTYPE_NAMES
from megacore.errors import CheckpointError


def save(directory: Path, seed: int, **more: object) -> Path:
    return save_checkpoint(
        directory, seed, tensors=make_tensors(seed), values=make_values(seed), **more
    )


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "deep", 100)
    assert path == tmp_path / "new" / "deep" / "iter_0000100"
    assert (path.parent / "latest_checkpointed_iteration.txt").read_bytes() == b"100"
    checkpoint = load_checkpoint(path.parent)
    assert checkpoint.iteration == 100
    assert differences(checkpoint, 100) == []
    assert {entry.name for entry in path.iterdir()} == {
        "metadata.json",
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
    }


@pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2, (5 * 7 * width,), generator=generator, dtype=torch.uint8)
    if dtype != torch.bool:
        raw *= 73
    tensor = raw.view(dtype).view(5, 7)
    save_checkpoint(tmp_path, 1, tensors={"model": {"t": tensor}}, values={})
    assert same(load_checkpoint(tmp_path).tensors("model")["t"], tensor)


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    """Read by the library of the format itself, not by this package."""
    path = save(tmp_path, 3)
    for group, tensors in make_tensors(3).items():
        stored = load_file(path / f"{group}.safetensors")
        assert set(stored) == set(tensors)
        assert all(same(stored[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("extra", [-1, 0, 1, 4097])
def test_tensors_longer_than_a_piece(tmp_path: Path, extra: int) -> None:
    big = torch.arange(CHUNK_BYTES // 2 + extra, dtype=torch.int32)
    save_checkpoint(tmp_path, 1, tensors={"model": {"big": big, "after": big[:3]}}, values={})
    stored = load_checkpoint(tmp_path).tensors("model")
    assert same(stored["big"], big)
    assert same(stored["after"], big[:3])


def test_metadata_lists_true_sizes_and_checksums(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["megacore_checkpoint"] == 2
    assert set(metadata["files"]) == {e.name for e in path.iterdir()} - {"metadata.json"}
    for name, record in metadata["files"].items():
        raw = (path / name).read_bytes()
        assert record["bytes"] == len(raw)
        assert record["xxh3_64"] == xxhash.xxh3_64_hexdigest(raw)


def test_other_iterations_are_found_by_step(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        save(tmp_path, seed)
    assert load_checkpoint(tmp_path).iteration == 3
    assert differences(load_checkpoint(tmp_path, step=2), 2) == []
    with pytest.raises(CheckpointError, match=r"iter_0000007.*iterations there: 1, 2, 3"):
        load_checkpoint(tmp_path, step=7)
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        load_checkpoint(tmp_path / "elsewhere")


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, tensors=make_tensors(6), values=make_values(6))
    assert differences(load_checkpoint(tmp_path), 6) == []
    visible = {entry.name for entry in tmp_path.iterdir()} - {".megacore.lock"}
    assert visible == {"iter_0000005", "latest_checkpointed_iteration.txt"}


def test_only_the_newest_are_retained(tmp_path: Path) -> None:
    foreign = tmp_path / "iter_0000001" / "mp_rank_00"
    foreign.mkdir(parents=True)
    (foreign / "model_optim_rng.pt").write_bytes(b"x")
    for seed in (2, 3, 4, 5):
        save(tmp_path, seed)
    save(tmp_path, 6, retain_last=2)
    names = sorted(entry.name for entry in tmp_path.glob("iter_*"))
    assert names == ["iter_0000001", "iter_0000005", "iter_0000006"]
    assert not list(tmp_path.glob(".removing-*"))


def test_load_into_fills_in_place(tmp_path: Path) -> None:
    save(tmp_path, 3)
    wanted = make_tensors(3)["model"]
    targets = {name: torch.empty_like(t).fill_(-1) for name, t in wanted.items()}
    where = {name: t.data_ptr() for name, t in targets.items()}
    assert load_checkpoint(tmp_path).load_into("model", targets) == []
    assert all(same(targets[name], t) for name, t in wanted.items())
    assert {name: t.data_ptr() for name, t in targets.items()} == where


def test_load_into_lists_every_fault_and_touches_nothing(tmp_path: Path) -> None:
    save(tmp_path, 3)
    targets = {
        "weight": torch.zeros(61, 8, dtype=torch.bfloat16),
        "bias": torch.zeros(3),
        "scalar": torch.zeros(()),
        "view": torch.zeros(2, 61),
        "added": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path).load_into("model", targets)
    for part in (
        "(4 tensors)",
        "weight: expected shape [61, 8], found [61, 7]",
        "bias: expected dtype F32, found F16",
        "added: missing in the checkpoint",
        "columns: in the checkpoint, but not in this run",
    ):
        assert part in str(caught.value)
    assert all(not tensor.any() for tensor in targets.values())


def test_load_into_casts_and_ignores_on_request(tmp_path: Path) -> None:
    save(tmp_path, 3)
    wanted = make_tensors(3)["model"]
    targets = {name: torch.zeros(wanted[name].shape) for name in ("weight", "bias", "view")}
    notes = load_checkpoint(tmp_path).load_into(
        "model", targets, cast=True, ignore=("scalar", "col")
    )
    assert sorted(notes) == ["bias: F16 converted to F32", "weight: BF16 converted to F32"]
    assert all(torch.equal(t, wanted[name].float()) for name, t in targets.items())


@pytest.mark.parametrize("rows", [50, 53, 64, 96])
def test_vocabulary_padding_may_differ(tmp_path: Path, rows: int) -> None:
    name = "embedding.word_embeddings.weight"
    weight = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    tensors = {"model": {name: weight}, "optimizer": {f"exp_avg.{name}": weight * 2}}
    save_checkpoint(tmp_path, 1, tensors=tensors, values={})
    checkpoint = load_checkpoint(tmp_path)
    target, moment = torch.full((rows, 3), 9.0), torch.zeros(rows, 3)
    vocabulary = VocabularyRows(size=53)
    if rows < 53:
        with pytest.raises(CheckpointError, match=r"word_embeddings.weight: expected shape"):
            checkpoint.load_into("model", {name: target}, vocabulary=vocabulary)
        return
    notes = checkpoint.load_into("model", {name: target}, vocabulary=vocabulary)
    checkpoint.load_into("optimizer", {f"exp_avg.{name}": moment}, vocabulary=vocabulary)
    both = min(rows, 64)
    assert torch.equal(target[:both], weight[:both])
    assert torch.equal(moment[:both], weight[:both] * 2)
    assert bool((target[both:] == 9.0).all())
    assert not moment[both:].any()
    expected = [] if rows == 64 else [f"{name}: 64 -> {rows} rows, vocabulary of 53 kept"]
    assert notes == expected


def test_only_vocabulary_weights_may_be_resized(tmp_path: Path) -> None:
    tensors = {"mlp.weight": torch.zeros(64, 3), "output_layer.weight": torch.zeros(64, 3)}
    save_checkpoint(tmp_path, 1, tensors={"model": tensors}, values={})
    targets = {"mlp.weight": torch.zeros(65, 3), "output_layer.weight": torch.zeros(65, 4)}
    with pytest.raises(CheckpointError, match="2 tensors"):
        load_checkpoint(tmp_path).load_into("model", targets, vocabulary=VocabularyRows(size=1))


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor c: dtype torch.complex64"):
        save_checkpoint(
            tmp_path, 1, tensors={"model": {"c": torch.zeros(1, dtype=torch.complex64)}}, values={}
        )
    with pytest.raises(ValueError, match=r"'\.\./model'"):
        save_checkpoint(tmp_path, 1, tensors={"../model": {}}, values={})
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 1, tensors={}, values={"loss": float("nan")})
    with pytest.raises(TypeError, match="serializable"):
        save_checkpoint(tmp_path, 1, tensors={}, values={"bad": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == [".megacore.lock"]


def test_a_missing_group_says_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, tensors={"model": {"w": torch.zeros(1)}}, values={})
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.groups == ("model",)
    with pytest.raises(CheckpointError, match="--no-load-optim"):
        checkpoint.tensors("optimizer")


def test_loaded_tensors_do_not_write_through(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    Checkpoint(path).tensors("optimizer")["exp_avg"].zero_()
    assert differences(Checkpoint(path), 3) == []

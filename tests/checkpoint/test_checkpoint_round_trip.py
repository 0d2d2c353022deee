"""What is saved comes back bit for bit, and the files are what they claim to be."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from checkpoint_cases import differences, make_tensors, make_values, same

from megacore.checkpoint import Checkpoint, VocabularyRows, load_checkpoint, save_checkpoint
from megacore.durable import CHUNK_BYTES
from megacore.errors import CheckpointError

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64,
    torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


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
        ".metadata",
        "__0_0.distcp",
        "checksums.json",
        "common.pt",
        "metadata.json",
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2, (5 * 7 * width,), generator=generator, dtype=torch.uint8)
    if dtype != torch.bool:
        raw *= 73
    tensor = raw.view(dtype).view(5, 7)
    save_checkpoint(tmp_path, 1, tensors={"model": {"t": tensor}}, values={})
    assert same(load_checkpoint(tmp_path).tensors("model")["t"], tensor)


def test_files_are_those_of_pytorch(tmp_path: Path) -> None:
    """Read by torch.distributed.checkpoint, not by this package."""
    path = save(tmp_path, 3)
    names = {"model": "{}", "optimizer": "optimizer.state.{}", "rng": "rng_state.{}"}
    for group, tensors in make_tensors(3).items():
        found = {names[group].format(name): torch.empty_like(t) for name, t in tensors.items()}
        dcp.load(found, checkpoint_id=path, no_dist=True)
        for name, tensor in tensors.items():
            assert same(found[names[group].format(name)], tensor), name


def test_common_values_are_those_of_megatron(tmp_path: Path) -> None:
    values = {
        "args": {"num_layers": 3, "bf16": True, "adam_beta1": 0.9, "adam_beta2": 0.95},
        "counters": {"consumed_train_samples": 96, "floating_point_operations": 3.5e9},
        "optimizer": {"step": 12, "loss_scale": {"scale": 2.0}},
    }
    path = save_checkpoint(tmp_path, 7, tensors={}, values=values)
    common = torch.load(path / "common.pt", weights_only=False)
    assert common["checkpoint_version"] == 3.0
    assert common["iteration"] == 7
    assert common["num_floating_point_operations_so_far"] == 3.5e9
    args = common["args"]
    assert (args.num_layers, args.params_dtype, args.consumed_train_samples) == (
        3,
        torch.bfloat16,
        96,
    )
    groups = common["optimizer"]["optimizer"]["param_groups"]
    assert [(g["step"], g["wd_mult"], g["betas"]) for g in groups] == [
        (12, 1.0, (0.9, 0.95)),
        (12, 0.0, (0.9, 0.95)),
    ]
    assert common["optimizer"]["param_state_sharding_type"] == "fully_sharded_model_space"
    assert json.loads((path / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert load_checkpoint(tmp_path).values == values


def test_layers_are_one_tensor_when_they_are_alike(tmp_path: Path) -> None:
    layers = {f"decoder.layers.{i}.mlp.weight": torch.randn(4, 3) for i in range(3)}
    uneven = {f"decoder.layers.{i}.norm.weight": torch.randn(2 + i) for i in range(3)}
    gap = {f"decoder.layers.{i}.extra.bias": torch.randn(5) for i in (0, 2)}
    model = {**layers, **uneven, **gap}
    path = save_checkpoint(tmp_path, 1, tensors={"model": model}, values={})
    metadata = dcp.FileSystemReader(path).read_metadata()
    assert {name: tuple(entry.size) for name, entry in metadata.state_dict_metadata.items()} == {
        "decoder.layers.mlp.weight": (3, 4, 3),
        **{name: tuple(tensor.shape) for name, tensor in (uneven | gap).items()},
    }
    found = {"decoder.layers.mlp.weight": torch.empty(3, 4, 3)}
    dcp.load(found, checkpoint_id=path, no_dist=True)
    assert torch.equal(found["decoder.layers.mlp.weight"], torch.stack(list(layers.values())))
    checkpoint = load_checkpoint(tmp_path)
    assert sorted(checkpoint.names("model")) == sorted(model)
    assert all(same(checkpoint.read("model", name), tensor) for name, tensor in model.items())


def test_large_checkpoints_are_two_files_of_a_process(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(1 << 20) for i in range(3)}
    path = save_checkpoint(tmp_path, 1, tensors={"model": tensors}, values={})
    assert sorted(e.name for e in path.glob("*.distcp")) == ["__0_0.distcp", "__0_1.distcp"]
    stored = load_checkpoint(tmp_path).tensors("model")
    assert all(same(stored[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("extra", [-1, 0, 1, 4097])
def test_tensors_longer_than_a_piece(tmp_path: Path, extra: int) -> None:
    big = torch.arange(CHUNK_BYTES // 2 + extra, dtype=torch.int32)
    save_checkpoint(tmp_path, 1, tensors={"model": {"big": big, "after": big[:3]}}, values={})
    stored = load_checkpoint(tmp_path).tensors("model")
    assert same(stored["big"], big)
    assert same(stored["after"], big[:3])


def test_true_sizes_and_checksums_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    manifest = json.loads((path / "checksums.json").read_text())
    assert manifest["megacore_checkpoint"] == 1
    assert manifest["iteration"] == 3
    assert set(manifest["files"]) == {e.name for e in path.iterdir()} - {"checksums.json"}
    for name, record in manifest["files"].items():
        raw = (path / name).read_bytes()
        assert record["bytes"] == len(raw)
        if "xxh3_64" in record:
            assert record["xxh3_64"] == xxhash.xxh3_64_hexdigest(raw)
            continue
        end = 0
        for _, _, start, length, _, _, crc in record["spans"]:
            assert (start, start % 64) == (end, 0)
            assert crc == zlib.crc32(raw[start : start + length])
            end += length
        assert end == len(raw)


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


def test_storages_can_be_resized_afterwards(tmp_path: Path) -> None:
    """As the parameters are that processes share: their memory comes and goes."""
    tensors = {"large": torch.randn(1 << 18), "small": torch.randn(3)}
    save_checkpoint(tmp_path, 1, tensors={"model": tensors}, values={})
    load_checkpoint(tmp_path).load_into("model", tensors)
    for tensor in tensors.values():
        tensor.untyped_storage().resize_(0)


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
        "bias: expected dtype float32, found float16",
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
    assert sorted(notes) == [
        "bias: float16 converted to float32",
        "weight: bfloat16 converted to float32",
    ]
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
    for impossible in (torch.zeros(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(ValueError, match=r"tensor c of the model state cannot be stored"):
            save_checkpoint(tmp_path, 1, tensors={"model": {"c": impossible}}, values={})
    with pytest.raises(ValueError, match="read as another one"):
        save_checkpoint(
            tmp_path, 1, tensors={"model": {"decoder.layers.w": torch.zeros(1)}}, values={}
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

"""`torch_dist` checkpoints that other programs wrote, and ours as they read them.

The files of Megatron-Core are made here with torch's own writer, from the description of what its
tensors are called and how they are cut.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from megacore.checkpoint import Checkpoint, VocabularyRows, load_checkpoint, save_checkpoint
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.strictness import STRICTNESS
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout

BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
QKV, FC1 = "decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.mlp.linear_fc1.weight"
WORDS = "embedding.word_embeddings.weight"
LAYERS = 3


def full_model() -> dict[str, Tensor]:
    """Stacked tensors, as Megatron-Core has them."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        WORDS: normal(24, 6).bfloat16(),
        QKV: normal(LAYERS, 12, 6).bfloat16(),
        FC1: normal(LAYERS, 16, 6).bfloat16(),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": normal(LAYERS, 6).bfloat16(),
        "decoder.final_layernorm.weight": normal(6).bfloat16(),
    }


class Writer:
    """Writes items as torch.distributed.checkpoint does, at places of our choice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True)
        self.entries: dict[str, object] = {}
        self.storage: dict[MetadataIndex, _StorageInfo] = {}
        self.original_shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def add(
        self, key: str, shape: tuple[int, ...], offsets: tuple[int, ...], data: Tensor, rank: int
    ) -> None:
        entry = self.entries.setdefault(
            key,
            TensorStorageMetadata(TensorProperties(dtype=data.dtype), torch.Size(shape), []),
        )
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), data.shape))
        stream = io.BytesIO()
        torch.save(data.clone(), stream)
        index = MetadataIndex(key, torch.Size(offsets), len(entry.chunks) - 1)
        self.storage[index] = self._append(rank, stream.getvalue())

    def add_object(self, key: str, value: object, rank: int) -> None:
        stream = io.BytesIO()
        torch.save(value, stream)
        self.entries[key] = BytesStorageMetadata()
        self.storage[MetadataIndex(key)] = self._append(rank, stream.getvalue())

    def _append(self, rank: int, raw: bytes) -> _StorageInfo:
        name = f"__{rank}_0.distcp"
        with (self._directory / name).open("ab") as file:
            start = file.tell()
            file.write(raw)
        return _StorageInfo(name, start, len(raw))

    def finish(self, common: Mapping[str, object] | None) -> None:
        metadata = Metadata(self.entries, storage_data=self.storage)
        metadata.mcore_data = {
            key: {"nd_reformulated_orig_global_shape": shape}
            for key, shape in self.original_shapes.items()
        }
        (self._directory / ".metadata").write_bytes(pickle.dumps(metadata))
        if common is not None:
            torch.save(common, self._directory / "common.pt")
            (self._directory / "metadata.json").write_text(json.dumps(BACKENDS))


@pytest.fixture
def model_type() -> Iterator[Enum]:
    """A member of an enumeration of Megatron's, pickled under Megatron's name."""
    modules = {name: types.ModuleType(name) for name in ("megatron", "megatron.core")}
    enums = types.ModuleType("megatron.core.enums")
    kind = Enum("ModelType", {"encoder_or_decoder": 1}, module="megatron.core.enums")
    enums.ModelType = kind
    sys.modules.update({**modules, "megatron.core.enums": enums})
    yield kind.encoder_or_decoder
    for name in (*modules, "megatron.core.enums"):
        del sys.modules[name]


def common_of(model_type: Enum) -> dict[str, object]:
    args = argparse.Namespace(
        num_layers=LAYERS,
        hidden_size=6,
        padded_vocab_size=24,
        params_dtype=torch.bfloat16,
        model_type=model_type,
        consumed_train_samples=960,
        consumed_valid_samples=32,
        position_embedding_type="rope",
        rotary_base=10000,
    )
    group = {"wd_mult": 1.0, "lr_mult": 1.0, "step": 30, "lr": 1e-4, "betas": (0.9, 0.95)}
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 30,
        "num_floating_point_operations_so_far": 1.5e12,
        "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 960, "lr_decay_style": "cosine"},
        "optimizer": {
            "optimizer": {"param_groups": [group, {**group, "wd_mult": 0.0}]},
            "param_state_sharding_type": "fully_sharded_model_space",
        },
    }


def flat_fragments(
    writer: Writer, key: str, full: Tensor, grid: tuple[int, ...], cuts: tuple[int, ...]
) -> None:
    """Stores a tensor as the distributed optimizer of Megatron-Core does."""
    fragment = tuple(a // b for a, b in zip(full.shape, grid, strict=True))
    size = math.prod(fragment)
    shape = (*grid, size)
    writer.original_shapes[key] = tuple(full.shape)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid)):
        place = tuple(index.tolist())
        part = full
        for dim, (i, n) in enumerate(zip(place, fragment, strict=True)):
            part = part.narrow(dim, i * n, n)
        flat = part.reshape(-1)
        edges = [0, *(cut for cut in cuts if cut < size), size]
        for rank, (start, stop) in enumerate(itertools.pairwise(edges)):
            data = flat[start:stop].view(*(1,) * len(grid), -1)
            writer.add(key, shape, (*place, start), data, rank)


@pytest.fixture
def megatron(tmp_path: Path, model_type: Enum) -> Path:
    """Written by 2 tensor-parallel, 3 pipeline and 2 data-parallel processes."""
    directory = tmp_path / "run" / "iter_0000030"
    writer = Writer(directory)
    for key, full in full_model().items():
        stacked = key.startswith("decoder.layers")
        parts = 4 if key == FC1 else 2 if key in (QKV, WORDS) else 1
        for layer in range(LAYERS if stacked else 1):
            for part in range(parts):
                dim = int(stacked)
                size = full.shape[dim] // parts
                data = full[layer : layer + 1] if stacked else full
                data = data.narrow(dim, part * size, size)
                offsets = [layer if stacked else 0, *[0] * (full.dim() - 1)]
                offsets[dim] = part * size if parts > 1 else offsets[dim]
                writer.add(key, tuple(full.shape), tuple(offsets), data, 2 * layer + part % 2)
    for kind in ("fp32_param", "exp_avg", "exp_avg_sq"):
        for key, full in full_model().items():
            grid = [1] * full.dim()
            if key.startswith("decoder.layers"):
                grid[0] = LAYERS
                grid[1] = {QKV: 2, FC1: 4}.get(key, 1)
            elif key == WORDS:
                grid[0] = 2
            values = full.float() + len(kind)
            name = f"optimizer.state.{kind}.{key}"
            flat_fragments(writer, name, values, tuple(grid), (5, 13))
    extra = io.BytesIO(b"state")
    writer.add_object("decoder.layers.mlp.linear_fc1._extra_state/shard_0_3", extra, 0)
    writer.add_object("rng_state/shard_0.0_3.2", [{"random_rng_state": (3, (1, 2), None)}], 0)
    writer.finish(common_of(model_type))
    (directory.parent / "latest_checkpointed_iteration.txt").write_text("30")
    return directory


def unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, tensor in tensors.items():
        if key.startswith("decoder.layers"):
            for layer in range(LAYERS):
                found[key.replace("layers.", f"layers.{layer}.")] = tensor[layer]
        else:
            found[key] = tensor
    return found


def test_a_checkpoint_of_megatron_core(megatron: Path) -> None:
    checkpoint = load_checkpoint(megatron.parent)
    assert not checkpoint.is_own
    assert checkpoint.iteration == 30
    assert checkpoint.groups == ("model", "optimizer")
    wanted = unstacked(full_model())
    stored = checkpoint.tensors("model")
    assert stored.keys() == wanted.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in wanted.items())
    state = checkpoint.tensors("optimizer")
    assert len(state) == 3 * len(wanted)
    for kind, added in (("main_param", 10), ("exp_avg", 7), ("exp_avg_sq", 10)):
        for name, tensor in wanted.items():
            assert torch.equal(state[f"{kind}.{name}"], tensor.float() + added), (kind, name)
    values = checkpoint.values
    assert values["args"]["hidden_size"] == 6
    assert values["counters"]["consumed_train_samples"] == 960
    assert values["counters"]["floating_point_operations"] == 1.5e12
    assert values["scheduler"]["num_steps"] == 960
    assert values["optimizer"]["step"] == 30


def test_parts_and_padding_of_a_checkpoint_of_megatron_core(megatron: Path) -> None:
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    layout = ParamLayout(
        name=f"exp_avg.{name}", full_shape=(16, 6), shard_dim=0, num_shards=2, shard=1, fold=2
    )
    flat = torch.zeros(31)
    words = torch.full((26, 6), 3.0)
    checkpoint = Checkpoint(megatron)
    notes = checkpoint.fill(
        "optimizer",
        [
            Part(layout, flat, 7),
            Part(ParamLayout(name=f"exp_avg.{WORDS}", full_shape=(26, 6)), words),
        ],
        vocabulary=VocabularyRows(size=23),
        strictness=STRICTNESS["assume_ok_unexpected"],
    )
    full = full_model()[FC1][1].float() + 7
    assert torch.equal(flat, layout.local(full).reshape(-1)[7:38])
    assert torch.equal(words[:24], full_model()[WORDS].float() + 7)
    assert bool((words[24:] == 3).all())
    assert notes[0].endswith("24 -> 26 rows, vocabulary of 23 kept")
    assert "tensors of the checkpoint are not used" in notes[1]


def test_damage_is_noticed_by_the_checksums_of_the_files(megatron: Path) -> None:
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    file = megatron / "__2_0.distcp"
    raw = file.read_bytes()
    data = bytes(full_model()[FC1][1, :4].contiguous().view(-1).view(torch.uint8).tolist())
    broken = bytearray(raw)
    broken[raw.index(data) + 9] ^= 4
    file.write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"__2_0.distcp.*CRC-32"):
        Checkpoint(megatron).read("model", name)
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match=r"__2_0.distcp"):
        Checkpoint(megatron).tensors("optimizer")


@pytest.mark.parametrize("missing", ["metadata.json", ".metadata"])
def test_an_incomplete_checkpoint_of_megatron_core(megatron: Path, missing: str) -> None:
    (megatron / missing).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(megatron.parent)


@pytest.mark.parametrize("shape", [(3, 16, 7), (3, 16), ("x",), (3, 17, 6)])
def test_impossible_original_shapes_are_refused(
    tmp_path: Path, model_type: Enum, shape: tuple[object, ...]
) -> None:
    writer = Writer(tmp_path / "c")
    full = torch.arange(288.0).view(3, 16, 6)
    flat_fragments(writer, "optimizer.state.exp_avg.w", full, (3, 4, 2), (3,))
    writer.original_shapes["optimizer.state.exp_avg.w"] = shape
    writer.finish(common_of(model_type))
    with pytest.raises(CheckpointError, match=r"optimizer\.state\.exp_avg\.w"):
        Checkpoint(tmp_path / "c")


def test_a_plain_checkpoint_of_pytorch(tmp_path: Path) -> None:
    """Without anything of Megatron's; the directory itself is the checkpoint."""
    state = {
        "embedding.word_embeddings.weight": torch.randn(8, 4),
        "decoder.layers.0.mlp.weight": torch.randn(5, 3),
        "decoder.layers.1.mlp.weight": torch.randn(5, 3),
    }
    dcp.save(state, checkpoint_id=tmp_path / "c", no_dist=True)
    checkpoint = load_checkpoint(tmp_path / "c")
    assert (checkpoint.iteration, checkpoint.values, checkpoint.is_own) == (0, {}, False)
    stored = checkpoint.tensors("model")
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_sharded_tensors_of_pytorch(tmp_path: Path) -> None:
    """Distributed tensors, as FSDP keeps them, in a world of one and of several."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        full = {"norm.weight": torch.randn(5), "mlp.weight": torch.randn(7, 3)}
        placed = {
            "norm.weight": distribute_tensor(full["norm.weight"], mesh, [Replicate()]),
            "mlp.weight": distribute_tensor(full["mlp.weight"], mesh, [Shard(0)]),
        }
        dcp.save(placed, checkpoint_id=tmp_path / "c")
    finally:
        dist.destroy_process_group()
    stored = load_checkpoint(tmp_path / "c").tensors("model")
    assert all(torch.equal(stored[name], tensor) for name, tensor in full.items())


@pytest.mark.parametrize("name", STRICTNESS)
def test_strictness(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(
        tmp_path, 1, tensors={"model": {"a": torch.ones(2), "b": torch.ones(2)}}, values={}
    )
    strictness = STRICTNESS[name]
    checkpoint = Checkpoint(path)

    def load(*names: str) -> tuple[dict[str, Tensor], list[str]]:
        targets = {key: torch.zeros(2) for key in names}
        return targets, checkpoint.load_into("model", targets, strictness=strictness)

    if strictness.unexpected == "raise":
        with pytest.raises(CheckpointError, match="b: in the checkpoint, but not in this run"):
            load("a")
    else:
        targets, notes = load("a")
        assert bool(targets["a"].all())
        expected = ["1 tensors of the checkpoint are not used: b"]
        assert notes == (expected if strictness.unexpected == "log" else [])
    if strictness.missing == "raise":
        with pytest.raises(CheckpointError, match="c: missing in the checkpoint"):
            load("a", "b", "c")
    else:
        targets, notes = load("a", "b", "c")
        assert (bool(targets["b"].all()), bool(targets["c"].any())) == (True, False)
        assert notes == (["c: missing in the checkpoint"] if strictness.missing == "log" else [])

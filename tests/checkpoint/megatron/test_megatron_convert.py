"""Conversions from and to `torch` checkpoints, bit for bit; what torch.load sees in them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_files import write_checkpoint
from megatron_model import Shape
from torch import Tensor

from megacore.checkpoint.convert.engine import convert
from megacore.checkpoint.convert.model_stream import Source, SourceOptions, TargetOptions
from megacore.checkpoint.convert.registry import detect, make_target, open_source
from megacore.errors import CheckpointError

GATED = Shape(gated=True, bias=False, rms=True, rope=True, tied=False, groups=2, channels=4)
CUTS = [
    {},
    {"tensor": 2},
    {"pipeline": 2},
    {"tensor": 2, "pipeline": 2, "virtual": 2},
    {"pipeline": 4},
]


def tensors(source: Source) -> dict[str, Tensor]:
    return {name: source.read(name).clone() for name in source.names()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("saver", ["core", "legacy"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("shape", [Shape(tp=2, pp=2, virtual=2), GATED], ids=["tied", "gated"])
def test_any_cut_to_any_cut(tmp_path: Path, shape: Shape, cut: dict[str, int], saver: str) -> None:
    written = write_checkpoint(tmp_path / "a", shape)
    options = TargetOptions(**({"tensor": 1, "pipeline": 1, "virtual": 1} | cut))
    source = open_source(tmp_path / "a", SourceOptions())
    plan = convert(source, make_target(saver, options), tmp_path / "b")
    assert not list((tmp_path / "b").glob(".*"))
    again = open_source(tmp_path / "b", SourceOptions(), name=saver)
    assert_same(tensors(again), written.model)
    sizes = again.description.source_layout
    assert (sizes.tensor, sizes.pipeline, sizes.virtual) == tuple(
        cut.get(name, 1) for name in ("tensor", "pipeline", "virtual")
    )
    assert again.description.config == source.description.config
    assert again.description.iteration == 7
    assert all(row.destinations for row in plan.table.rows)
    assert again.unmapped().keys() <= {
        "output_layer.weight",
        "word_embeddings_for_head.weight",
    }
    # Back to what it was: the files hold the same models.
    back = TargetOptions(tensor=shape.tp, pipeline=shape.pp, virtual=shape.virtual)
    convert(again, make_target("core", back), tmp_path / "c")
    for file in sorted(written.path.glob("*/model_optim_rng.pt")):
        other = tmp_path / "c" / written.path.name / file.parent.name / file.name
        assert_same(models(other), models(file))


def models(file: Path) -> dict[str, Tensor]:
    """The tensors of all models in a file, as torch.load sees them."""
    from megatron_files import megatron_modules

    with megatron_modules():
        state = torch.load(file, weights_only=False)
    return {
        f"{key}.{name}": tensor
        for key, model in state.items()
        if key.startswith("model")
        for name, tensor in model.items()
        if not name.endswith("_extra_state")
    }


def test_what_torch_load_sees(tmp_path: Path) -> None:
    shape = Shape(pp=2, virtual=2)
    write_checkpoint(tmp_path / "a", shape)
    options = TargetOptions(tensor=2, pipeline=2, virtual=2)
    source = open_source(tmp_path / "a", SourceOptions())
    convert(source, make_target("core", options), tmp_path / "b")
    assert (tmp_path / "b" / "latest_checkpointed_iteration.txt").read_bytes() == b"7"
    folder = tmp_path / "b" / "iter_0000007"
    assert sorted(path.name for path in folder.iterdir()) == [
        "mp_rank_00_000",
        "mp_rank_00_001",
        "mp_rank_01_000",
        "mp_rank_01_001",
    ]
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(folder / "mp_rank_01_001" / "model_optim_rng.pt", weights_only=True)
    assert state["checkpoint_version"] == 3.0
    assert state["iteration"] == 7
    args = state["args"]
    assert isinstance(args, argparse.Namespace)
    assert args.tensor_model_parallel_size == 2
    assert args.virtual_pipeline_model_parallel_size == 2
    assert args.num_layers == 4
    assert args.consumed_train_samples == 700
    assert args.params_dtype == torch.bfloat16
    # The second stage of the second rank is layer 3 of 4, and ends with a copy of the embedding.
    names = list(state["model1"])
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.0.mlp.linear_fc1._extra_state" in names
    assert not any(".layers.1." in name for name in names)
    first = torch.load(folder / "mp_rank_01_000" / "model_optim_rng.pt", weights_only=False)
    embedding = first["model0"]["embedding.word_embeddings.weight"]
    assert torch.equal(state["model1"]["output_layer.weight"], embedding)


def test_local_layers_have_norms_of_their_own(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "a", Shape())
    source = open_source(tmp_path / "a", SourceOptions())
    convert(source, make_target("core", TargetOptions(fused_norms=False)), tmp_path / "b")
    names = models(tmp_path / "b" / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt")
    assert "model.decoder.layers.0.input_layernorm.weight" in names
    assert "model.decoder.layers.0.pre_mlp_layernorm.bias" in names
    again = open_source(tmp_path / "b", SourceOptions())
    assert_same(tensors(again), written.model)


def test_legacy_models_as_torch_load_sees_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", Shape(tp=2, pp=2), style="legacy")
    source = open_source(tmp_path / "a", SourceOptions())
    assert source.description.source_format == "Megatron legacy, torch"
    convert(source, make_target("legacy", TargetOptions()), tmp_path / "b")
    file = Path("iter_0000007", "mp_rank_01_001", "model_optim_rng.pt")
    from megatron_files import megatron_modules

    with megatron_modules():
        before, after = (torch.load(tmp_path / d / file, weights_only=False) for d in "ab")
    assert structure(after["model"]) == structure(before["model"])


def structure(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in value.items()}
    return tuple(value.shape), value.dtype


@pytest.mark.parametrize(
    ("known", "tensor", "rows"), [(None, 2, 32), (29, 2, 32), (29, 4, 32), (17, 2, 32), (9, 1, 16)]
)
def test_rows_of_the_vocabulary(tmp_path: Path, known: int | None, tensor: int, rows: int) -> None:
    written = write_checkpoint(tmp_path / "a", Shape())
    source = open_source(tmp_path / "a", SourceOptions(vocab_size=known))
    convert(source, make_target("core", TargetOptions(tensor=tensor)), tmp_path / "b")
    again = open_source(tmp_path / "b", SourceOptions())
    name = "embedding.word_embeddings.weight"
    assert again.info(name).shape[0] == rows
    assert again.description.vocab_size == known
    kept = min(rows, known or rows)
    assert torch.equal(again.read(name)[:kept], written.model[name][:kept])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"tensor": 3}, "32 vocabulary rows cannot be divided among 3"),
        ({"tensor": 8}, "4 groups of query heads cannot be divided among 8"),
        ({"pipeline": 3}, "4 layers cannot be divided equally among 3 pipeline ranks of 1"),
        ({"pipeline": 2, "virtual": 4}, "4 layers cannot be divided equally among 2"),
        ({"expert": 2}, "no experts"),
    ],
    ids=str,
)
def test_impossible_cuts_are_refused(tmp_path: Path, cut: dict[str, int], message: str) -> None:
    write_checkpoint(tmp_path / "a", Shape())
    source = open_source(tmp_path / "a", SourceOptions())
    with pytest.raises(CheckpointError, match=message):
        convert(source, make_target("core", TargetOptions(**cut)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_releases_and_iterations_are_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "r", Shape(), release=True, iteration=0)
    assert detect(tmp_path / "r") == "core"
    source = open_source(tmp_path / "r", SourceOptions())
    convert(source, make_target("core", TargetOptions(tensor=2)), tmp_path / "s")
    assert (tmp_path / "s" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert (tmp_path / "s" / "release" / "mp_rank_01" / "model_optim_rng.pt").is_file()
    a = tmp_path / "a"
    write_checkpoint(a, Shape(), iteration=3)
    write_checkpoint(a, replace(Shape(), layers=2), iteration=5)
    assert open_source(a, SourceOptions()).description.config.num_layers == 2
    assert open_source(a, SourceOptions(step=3)).description.config.num_layers == 4
    assert open_source(a / "iter_0000003", SourceOptions()).description.iteration == 3
    with pytest.raises(CheckpointError, match="iterations there: 3, 5"):
        open_source(a, SourceOptions(step=4), name="core")
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        open_source(a / "iter_0000003", SourceOptions(step=4), name="core")


def test_tensors_that_nobody_knows_stop_a_conversion(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "a", Shape())
    file = written.path / "mp_rank_00" / "model_optim_rng.pt"
    from megatron_files import megatron_modules

    with megatron_modules():
        state = torch.load(file, weights_only=False)
        state["model"]["decoder.layers.1.mlp.router.weight"] = torch.zeros(2, 2)
        torch.save(state, file)
    source = open_source(tmp_path / "a", SourceOptions())
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.mlp\.router\.weight"):
        convert(source, make_target("core", TargetOptions()), tmp_path / "b")


@pytest.mark.parametrize("shape", [Shape(tp=2, pp=2, virtual=2), GATED], ids=["tied", "gated"])
def test_through_torch_dist_and_back(tmp_path: Path, shape: Shape) -> None:
    written = write_checkpoint(tmp_path / "a", shape)
    source = open_source(tmp_path / "a", SourceOptions(vocab_size=30))
    target = make_target("core", TargetOptions(ckpt_format="torch_dist"))
    convert(source, target, tmp_path / "b")
    folder = tmp_path / "b" / "iter_0000007"
    assert {".metadata", "common.pt", "metadata.json", "checksums.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not list((tmp_path / "b").glob(".*"))
    between = open_source(tmp_path / "b", SourceOptions())
    assert between.description.config == source.description.config
    assert between.description.vocab_size == 30
    assert_same(tensors(between), written.model)
    convert(between, make_target("core", TargetOptions(tensor=2)), tmp_path / "c")
    assert_same(tensors(open_source(tmp_path / "c", SourceOptions())), written.model)


def test_torch_dist_has_no_cut(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not cut"):
        make_target("core", TargetOptions(ckpt_format="torch_dist", pipeline=2))
    with pytest.raises(CheckpointError, match="zarr cannot be written"):
        make_target("core", TargetOptions(ckpt_format="zarr"))
    with pytest.raises(CheckpointError, match="legacy models have no checkpoints"):
        make_target("legacy", TargetOptions(ckpt_format="torch_dist"))

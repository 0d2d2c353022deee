"""Checkpoints as Megatron-LM writes them, in any cut and style: every tensor is found whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_files import SCHEDULER, Written, write_checkpoint
from megatron_model import Shape
from torch import Tensor

from megacore.checkpoint.megatron.checkpoint import MegatronCheckpoint
from megacore.checkpoint.pieces import Part
from megacore.errors import CheckpointError
from megacore.parallel.layout import full_tensor

GATED = Shape(gated=True, bias=False, rms=True, rope=True, tied=False, groups=2, channels=4)
GRID = {
    "one file": Shape(),
    "tp2": Shape(tp=2),
    "pp2": Shape(pp=2),
    "pp2 untied": Shape(pp=2, tied=False),
    "tp2 pp2": Shape(tp=2, pp=2),
    "tp2 pp2 virtual2": Shape(tp=2, pp=2, virtual=2),
    "pp2 virtual3, 6 layers": Shape(layers=6, pp=2, virtual=3),
    "pp3 uneven": Shape(layers=5, pp=3, counts=(1, 3, 1)),
    "pp2 standalone embedding": Shape(layers=3, pp=2, counts=(0, 3)),
    "gated": GATED,
    "gated tp2": replace(GATED, tp=2),
    "gated tp2 pp2 virtual2": replace(GATED, tp=2, pp=2, virtual=2),
    "heads wider than the model, tp4": Shape(channels=5, tp=4, ffn=36),
}


def whole(parts: dict[str, list[Part]]) -> dict[str, Tensor]:
    return {
        name: full_tensor([p.layout for p in own], [p.data for p in own])
        for name, own in parts.items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def expected_states(written: Written, *, main: bool) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for kind, tensors in written.states.items()
        if main or kind != "main_param"
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("shape", GRID.values(), ids=GRID)
@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
def test_every_cut_gives_the_whole_model_and_optimizer(
    tmp_path: Path, shape: Shape, optimizer: str
) -> None:
    written = write_checkpoint(tmp_path, shape, optimizer=optimizer)
    checkpoint = MegatronCheckpoint(written.path, verify=(0, 1))
    assert checkpoint.groups == ("model", "optimizer", "rng")
    assert (checkpoint.tensor_size, checkpoint.pipeline_size) == (shape.tp, shape.pp)
    assert checkpoint.virtual_size == shape.virtual
    assert_same(whole(checkpoint.parts("model")), written.model)
    assert_same(whole(checkpoint.parts("optimizer")), expected_states(written, main=True))
    assert not any(chunk.unknown for chunk in checkpoint.model.all_chunks())


@pytest.mark.parametrize("style", ["local", "legacy", "old-legacy"])
@pytest.mark.parametrize("shape", [Shape(tp=2, pp=2, virtual=2), Shape(tied=False), Shape(pp=2)])
def test_other_names_of_the_same_model(tmp_path: Path, shape: Shape, style: str) -> None:
    written = write_checkpoint(tmp_path, shape, style=style)
    checkpoint = MegatronCheckpoint(written.path)
    assert checkpoint.model.is_legacy == ("legacy" in style)
    assert checkpoint.model.tied == shape.tied
    assert_same(whole(checkpoint.parts("model")), written.model)
    assert_same(whole(checkpoint.parts("optimizer")), expected_states(written, main=True))


@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
def test_fp32_models_are_their_own_main_parameters(tmp_path: Path, optimizer: str) -> None:
    shape = Shape(tp=2)
    written = write_checkpoint(tmp_path, shape, dtype=torch.float32, optimizer=optimizer)
    checkpoint = MegatronCheckpoint(written.path)
    assert_same(whole(checkpoint.parts("model")), written.model)
    assert_same(whole(checkpoint.parts("optimizer")), expected_states(written, main=False))


def test_a_learning_rate_of_its_own_makes_more_groups(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(tied=False, pp=2), decoupled=True)
    checkpoint = MegatronCheckpoint(written.path)
    assert_same(whole(checkpoint.parts("optimizer")), expected_states(written, main=True))


@pytest.mark.parametrize("dp", [1, 3, 8])
@pytest.mark.parametrize("bucket_size", [1, 300, 1000])
def test_buffers_of_many_buckets(tmp_path: Path, dp: int, bucket_size: int) -> None:
    """Sizes of buckets are not stored; where they end is found by looking."""
    shape = Shape(pp=2, hidden=20, channels=5)
    written = write_checkpoint(
        tmp_path, shape, optimizer="distributed", dp=dp, bucket_size=bucket_size
    )
    checkpoint = MegatronCheckpoint(written.path)
    assert_same(whole(checkpoint.parts("optimizer")), expected_states(written, main=True))


def test_buffers_of_another_model_are_refused(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(), optimizer="distributed")
    file = written.path / "mp_rank_00" / "distrib_optim.pt"
    stored = torch.load(file, weights_only=False)
    (buffer,) = stored[0].values()
    buffer["param"] = buffer["param"].flip(0)
    torch.save(stored, file)
    with pytest.raises(CheckpointError, match=r"distrib_optim\.pt: buffer 0.*--no-load-optim"):
        MegatronCheckpoint(written.path).parts("optimizer")


@pytest.mark.parametrize("version", [0, 1, 2.0])
def test_old_orders_of_query_key_value_rows(tmp_path: Path, version: float) -> None:
    shape = Shape(tp=2)
    local_heads, channels = shape.heads // shape.tp, shape.channels

    def as_it_was(name: str, tensor: Tensor) -> Tensor:
        """The opposite of what Megatron does when it loads such a file."""
        if not name.endswith(("linear_qkv.weight", "linear_qkv.bias")) or version >= 2:
            return tensor
        inner = tensor.shape[1:]
        now = tensor.view(local_heads, 3, channels, *inner)
        then = now.transpose(0, 1) if version == 0 else now.transpose(1, 2)
        return then.reshape(tensor.shape).clone()

    written = write_checkpoint(
        tmp_path, shape, style="old-legacy", version=version, transform=as_it_was, optimizer=None
    )
    checkpoint = MegatronCheckpoint(written.path)
    assert_same(whole(checkpoint.parts("model")), written.model)
    assert checkpoint.groups == ("model",)


def test_values_of_the_run(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(tp=2))
    checkpoint = MegatronCheckpoint(written.path)
    values = checkpoint.values
    assert values["counters"] == {
        "iteration": 7,
        "consumed_train_samples": 700,
        "consumed_valid_samples": 40,
        "skipped_train_samples": 2,
        "floating_point_operations": 1.5e9,
    }
    assert values["scheduler"] == SCHEDULER
    assert values["optimizer"] == {
        "step": 7,
        "loss_scale": {"scale": 4096.0, "growth_tracker": 3, "hysteresis_tracker": 1},
    }
    assert checkpoint.iteration == 7
    args = values["args"]
    assert args["num_layers"] == 4
    assert args["data_path"] == ["0.5", "a", "0.5", "b"]
    # An enumeration and a dtype are not settings.
    assert not {"model_type", "params_dtype"} & args.keys()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"use_rotary_position_embeddings": True}, "rope"),
        ({"position_embedding_type": None, "add_position_embedding": False}, "none"),
        ({"position_embedding_type": None}, "learned_absolute"),
    ],
)
def test_positions_of_old_releases(tmp_path: Path, args: dict[str, Any], expected: str) -> None:
    written = write_checkpoint(tmp_path, Shape(rope=expected == "rope"), args=args)
    settings = MegatronCheckpoint(written.path).settings
    assert settings["position_embedding_type"] == expected


@pytest.mark.parametrize(("style", "expected"), [("te", False), ("legacy", True)])
def test_what_a_core_model_does_not_look_at(tmp_path: Path, style: str, expected: bool) -> None:
    written = write_checkpoint(tmp_path, Shape(), style=style, args={"openai_gelu": True})
    assert MegatronCheckpoint(written.path).settings["openai_gelu"] is expected


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("mp_rank_01_001", "mp_rank_01_001/model_optim_rng.pt missing"),
        ("mp_rank_00_001", "mp_rank_00_001/model_optim_rng.pt missing"),
        ("mp_rank_00_000", "of the first rank is missing"),
    ],
)
def test_a_missing_rank_is_named(tmp_path: Path, missing: str, message: str) -> None:
    written = write_checkpoint(tmp_path, Shape(tp=2, pp=2))
    remove(written.path / missing)
    with pytest.raises(CheckpointError, match=message):
        MegatronCheckpoint(written.path)


def test_a_missing_last_stage_is_named(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(layers=4, pp=4))
    remove(written.path / "mp_rank_00_003")
    with pytest.raises(CheckpointError, match=r"mp_rank_00_003/model_optim_rng\.pt missing"):
        MegatronCheckpoint(written.path)


def test_a_missing_last_tensor_rank_is_named(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(tp=4))
    remove(written.path / "mp_rank_03")
    with pytest.raises(CheckpointError, match=r"mp_rank_03/model_optim_rng\.pt missing"):
        MegatronCheckpoint(written.path)


def test_a_missing_buffer_file_is_named(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(tp=2), optimizer="distributed")
    (written.path / "mp_rank_01" / "distrib_optim.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_01/distrib_optim\.pt: missing"):
        MegatronCheckpoint(written.path).parts("optimizer")


def test_files_of_two_saves_are_refused(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "a", Shape(tp=2), iteration=7)
    other = write_checkpoint(tmp_path / "b", Shape(tp=2), iteration=8)
    name = "mp_rank_01/model_optim_rng.pt"
    (other.path / name).replace(one.path / name)
    with pytest.raises(CheckpointError, match=r"mp_rank_01.*of iteration 8"):
        MegatronCheckpoint(one.path)


@pytest.mark.parametrize("where", ["tensor", "pickle", "end"])
def test_a_damaged_file_is_named(tmp_path: Path, where: str) -> None:
    written = write_checkpoint(tmp_path, Shape(tp=2))
    file = written.path / "mp_rank_01" / "model_optim_rng.pt"
    raw = bytearray(file.read_bytes())
    if where == "tensor":
        # The second half of the rows of the embedding, which is cut in two.
        rows = written.model["embedding.word_embeddings.weight"].chunk(2)[1].contiguous()
        raw[raw.index(rows.view(torch.uint8).numpy().tobytes()) + 100] ^= 4
    elif where == "pickle":
        raw[raw.index(b"checkpoint_version")] ^= 4
    else:
        del raw[-1]
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="mp_rank_01"):
        MegatronCheckpoint(written.path, verify=(0, 1))


def test_other_kinds_of_models(tmp_path: Path) -> None:
    from megacore.checkpoint.megatron.arguments import model_config

    written = write_checkpoint(tmp_path, Shape(), args={"num_experts": 8})
    with pytest.raises(CheckpointError, match=r"args\.num_experts is 8: a mixture of experts"):
        model_config(MegatronCheckpoint(written.path).settings, where="x")


def test_another_number_of_layers_than_the_arguments_say(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(), args={"num_layers": 5})
    with pytest.raises(CheckpointError, match=r"args\.num_layers is 5, but the files hold 4"):
        MegatronCheckpoint(written.path)

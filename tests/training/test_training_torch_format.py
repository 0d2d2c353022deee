"""Runs and `torch` checkpoints: exact resumes, Megatron-LM's files, conversion between formats."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from training_runs import losses, train

from megacore.checkpoint import load_checkpoint
from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions
from megacore.checkpoint.convert.registry import make_target, open_source
from megacore.checkpoint.inspect_cli import main as checkpoint_tool
from megacore.errors import CheckpointError, ConfigError

TORCH = "--ckpt-format torch"
VARIANTS = {
    "fp32": "",
    "bf16, accumulation": "--bf16 --global-batch-size 8 --clip-grad 0.1",
    "fp16, loss scale that grows and falls": (
        "--fp16 --initial-loss-scale 262144 --loss-scale-window 2 --hysteresis 1"
    ),
    "decoupled rate, untied": "--decoupled-lr 1e-3 --untie-embeddings-and-output-weights --bf16",
    "sgd, growing weight decay": (
        "--optimizer sgd --lr-decay-style cosine --lr-warmup-iters 3 --start-weight-decay 0 "
        "--end-weight-decay 0.1 --weight-decay-incr-style linear"
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bitwise(tmp_path: Path, variant: str) -> None:
    flags = f"{VARIANTS[variant]} {TORCH}"
    expected = losses(train(flags))
    first = losses(train(f"{flags} --save {tmp_path} --save-interval 1000 --exit-interval 4"))
    second = losses(train(f"{flags} --save {tmp_path} --save-interval 1000 --load {tmp_path}"))
    assert first + second == expected
    assert len(set(expected)) > 4
    # Both iterations are complete, and the second run could replace its own.
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000004", "iter_0000008"]
    assert sorted(load_checkpoint(tmp_path).groups) == ["model", "optimizer", "rng"]


def test_what_torch_load_sees(tmp_path: Path) -> None:
    train(f"--bf16 --save {tmp_path} --save-interval 4 --exit-interval 4 {TORCH}")
    folder = tmp_path / "iter_0000004"
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "mp_rank_00"]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_bytes() == b"4"
    state = torch.load(folder / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)
    assert state.keys() == {
        "args",
        "checkpoint_version",
        "iteration",
        "model",
        "optimizer",
        "opt_param_scheduler",
        "rng_state",
        "num_floating_point_operations_so_far",
        "megacore",
    }
    args = state["args"]
    assert isinstance(args, argparse.Namespace)
    assert (args.num_layers, args.hidden_size, args.num_attention_heads) == (2, 32, 4)
    assert (args.consumed_train_samples, args.padded_vocab_size) == (16, 128)
    assert (args.tensor_model_parallel_size, args.params_dtype) == (1, torch.bfloat16)
    assert state["checkpoint_version"] == 3.0
    assert state["opt_param_scheduler"]["num_steps"] == 16
    optimizer = state["optimizer"]
    groups = optimizer["optimizer"]["param_groups"]
    assert [group["wd_mult"] for group in groups] == [1.0, 0.0]
    assert [group["step"] for group in groups] == [4, 4]
    numbers = [number for group in groups for number in group["params"]]
    assert numbers == list(range(len(optimizer["optimizer"]["state"])))
    mains = [main for group in optimizer["fp32_from_fp16_params"] for main in group]
    names = [name for name in state["model"] if not name.endswith("_extra_state")]
    assert len(mains) == len(names) == len(numbers)
    assert torch.equal(mains[0].bfloat16(), state["model"][names[0]])
    (rng,) = state["rng_state"]
    torch.set_rng_state(rng["torch_rng_state"])


def test_a_run_goes_on_from_either_format(tmp_path: Path) -> None:
    flags = f"--bf16 --save {tmp_path} --save-interval 1000 --load {tmp_path}"
    expected = losses(train("--bf16"))
    found = losses(train(f"{flags} --exit-interval 2 {TORCH}"))
    found += losses(train(f"{flags} --exit-interval 5"))
    found += losses(train(f"{flags} {TORCH}"))
    assert found == expected


@pytest.mark.parametrize("there", ["torch", "torch_dist"])
def test_conversion_of_a_run(tmp_path: Path, there: str) -> None:
    here = "torch_dist" if there == "torch" else "torch"
    flags = "--bf16 --swiglu"
    run, converted = tmp_path / "run", tmp_path / "converted"
    expected = losses(train(flags))
    first = losses(
        train(f"{flags} --save {run} --save-interval 3 --exit-interval 3 --ckpt-format {here}")
    )
    printed = train(
        f"{flags} --load {run} --ckpt-convert-format {there} --ckpt-convert-save {converted}"
    )
    assert losses(printed) == []
    assert f"converted checkpoint: {run} -> {converted / there}" in printed
    is_torch = (converted / there / "iter_0000003" / "mp_rank_00").is_dir()
    assert is_torch == (there == "torch")
    second = losses(train(f"{flags} --load {converted / there}"))
    assert first + second == expected


@pytest.mark.parametrize(
    "flags",
    [
        "--ckpt-convert-format torch --ckpt-convert-save x",
        "--load y --ckpt-convert-format torch",
        "--load y --ckpt-convert-save x",
    ],
)
def test_half_a_conversion_is_refused(flags: str) -> None:
    with pytest.raises(ConfigError, match="MC0750"):
        train(flags)


def test_a_damaged_rank_file_is_named(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 4 --exit-interval 4 {TORCH}")
    file = tmp_path / "iter_0000004" / "mp_rank_00" / "model_optim_rng.pt"
    assert checkpoint_tool(["verify", str(tmp_path)]) == 0
    assert checkpoint_tool(["show", str(tmp_path)]) == 0
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert checkpoint_tool(["verify", str(tmp_path)]) == 1
    # The record of the tensor is named too.
    with pytest.raises(CheckpointError, match=r"mp_rank_00/model_optim_rng\.pt: damaged.*data/\d+"):
        train(f"--load {tmp_path}")
    file.write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match=r"model_optim_rng\.pt.*cut off"):
        train(f"--load {tmp_path}")


def test_weights_of_megatron_are_finetuned(tmp_path: Path) -> None:
    """A released model, cut for other ranks; padding and architecture come from elsewhere."""
    run, release = tmp_path / "run", tmp_path / "release"
    train(f"--save {run} --save-interval 4 --exit-interval 4 --swiglu --normalization RMSNorm")
    source = open_source(run, SourceOptions())
    target = make_target("core", TargetOptions(tensor=2, pipeline=2, ckpt_format="torch"))
    from megacore.checkpoint.convert.engine import convert

    convert(source, target, release)
    without = "--num-layers --hidden-size --num-attention-heads --max-position-embeddings"
    flags = "--finetune --use-checkpoint-args --make-vocab-size-divisible-by 32"
    printed = train(f"--load {release} {flags} --train-iters 1", without=without)
    (loss,) = losses(printed)
    again = train(f"--load {run} {flags} --train-iters 1", without=without)
    assert losses(again) == [loss]


def test_another_architecture_is_one_message(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 4 --exit-interval 4 {TORCH}")
    with pytest.raises(CheckpointError, match="another model") as error:
        train(f"--load {tmp_path} --num-attention-heads 8 --swiglu --ffn-hidden-size 64")
    for name in ("num_attention_heads", "swiglu", "ffn_hidden_size", "kv_channels"):
        assert name in str(error.value)


def test_nothing_is_left_of_a_save_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megacore.checkpoint.megatron import saving

    flags = f"--save {tmp_path} --save-interval 2 {TORCH}"
    train(f"{flags} --exit-interval 2")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model_optim_rng.pt")

    monkeypatch.setattr(saving, "write_all", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(f"{flags} --load {tmp_path}")
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith((".writing", "iter_"))}
    assert left == {"iter_0000002"}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "2"

"""2N steps are N steps, a stop, and N more: to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import assert_same_bits, losses, metrics, stored, train

from megacore.checkpoint import load_checkpoint, save_checkpoint
from megacore.errors import CheckpointError, ConfigError, UsageError

# Dropout is on by default (0.1), so the random state matters in every one of these.
VARIANTS = {
    "fp32": "",
    "fp32, workers": "--num-workers 2",
    "bf16, accumulation": "--bf16 --global-batch-size 8 --clip-grad 0.1",
    "fp16, loss scale that grows and falls": (
        "--fp16 --initial-loss-scale 262144 --loss-scale-window 2 --hysteresis 1"
    ),
    "per-token loss, decoupled rate, zeros": (
        "--calculate-per-token-loss --decoupled-lr 1e-3 --untie-embeddings-and-output-weights "
        "--log-num-zeros-in-grad"
    ),
    "sgd, cosine, growing weight decay": (
        "--optimizer sgd --lr-decay-style cosine --lr-warmup-iters 3 --start-weight-decay 0 "
        "--end-weight-decay 0.1 --weight-decay-incr-style linear"
    ),
    "recompute, rope, gated": (
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --bf16 "
        "--position-embedding-type rope --swiglu --normalization RMSNorm --disable-bias-linear"
    ),
    "evaluation between": "--eval-interval 2 --eval-iters 2 --num-workers 2",
    "deterministic, cyclic": "--deterministic-mode --dataloader-type cyclic",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bitwise(tmp_path: Path, variant: str) -> None:
    flags = VARIANTS[variant]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    expected = losses(train(f"{flags} --save {whole} --save-interval 1000"))
    first = losses(train(f"{flags} --save {halves} --save-interval 1000 --exit-interval 4"))
    second = losses(train(f"{flags} --save {halves} --save-interval 1000 --load {halves}"))
    assert first + second == expected
    assert len(set(expected)) > 4
    assert_same_bits(stored(whole), stored(halves))


RAMP = (
    "--train-samples 40 --rampup-batch-size 2 2 18 --global-batch-size 6 --bf16 --eval-interval 3 "
    "--eval-iters 1"
)


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_resume_is_bitwise_in_a_ramp_up(tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(f"{RAMP} --save {whole} --save-interval 1000", without="--train-iters")
    flags = f"{RAMP} --save {parts} --load {parts} --save-interval 1000"
    first = train(f"{flags} --exit-interval {stop}", without="--train-iters")
    second = train(flags, without="--train-iters")
    assert losses(first) + losses(second) == losses(expected)
    assert_same_bits(stored(whole), stored(parts))


def test_a_step_of_the_ramp_up_saves(tmp_path: Path) -> None:
    printed = train(f"{RAMP} --save {tmp_path} --save-interval 1000", without="--train-iters")
    # 2 sequences until 9 are used (5 iterations), 4 until 18 (2), then 6: 40 are never passed.
    sizes = [
        line.split("global batch size:")[1].split("|")[0].strip()
        for line in printed.splitlines()
        if " consumed samples:" in line
    ]
    assert sizes == ["2"] * 5 + ["4"] * 2 + ["6"] * 3
    saved = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert saved == ["iter_0000005", "iter_0000007", "iter_0000010"]


def test_going_back_to_an_earlier_checkpoint_gives_the_same_end(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    train(f"--bf16 --save {run} --save-interval 3")
    train(f"--bf16 --load {run} --ckpt-step 3 --save {again} --save-interval 100")
    assert_same_bits(stored(run), stored(again))
    with pytest.raises(CheckpointError, match="already holds iteration 8"):
        train(f"--bf16 --load {run} --ckpt-step 3 --save {run} --save-interval 100")


def test_settings_that_differ_are_shown(tmp_path: Path) -> None:
    flags = f"--save {tmp_path} --save-interval 1000"
    train(f"{flags} --exit-interval 4")
    printed = train(f"{flags} --load {tmp_path} --clip-grad 0.5 --log-interval 2")
    table = printed.split("settings that differ")[1].splitlines()
    assert table[1].split() == ["setting", "checkpoint", "command", "line", "used"]
    rows = {line.split()[0]: line.split()[1:] for line in table[3:6]}
    assert rows == {
        "clip_grad": ["1", "0.5", "0.5"],
        "log_interval": ["1", "2", "2"],
        "exit_interval": ["4", "-", "-"],
    }


def test_another_schedule_is_refused_or_chosen(tmp_path: Path) -> None:
    flags = f"--save {tmp_path} --save-interval 1000"
    train(f"{flags} --exit-interval 4")
    longer = f"{flags} --load {tmp_path} --train-iters 12"
    with pytest.raises(UsageError, match="lr_decay_steps"):
        train(longer)
    printed = train(f"{longer} --override-opt_param-scheduler --exit-interval 5")
    assert "schedule lr_decay_steps" in printed
    assert losses(printed)
    (last,) = [line for line in printed.splitlines() if " consumed samples:" in line]
    # Linear from 1e-2 to 0 over 12 iterations, 5 of them done.
    assert f"learning rate: {1e-2 * 7 / 12:.6E}" in last
    # The checkpoint of iteration 5 holds the schedule of 12 iterations.
    printed = train(
        f"{flags} --load {tmp_path} --train-iters 16 --exit-interval 6 "
        "--use-checkpoint-opt_param-scheduler"
    )
    assert f"learning rate: {1e-2 * 6 / 12:.6E}" in printed


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 4 --exit-interval 4")
    with pytest.raises(CheckpointError, match="num_attention_heads") as caught:
        train(f"--load {tmp_path} --num-attention-heads 2 --swiglu")
    assert "swiglu" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"96|97"):
        train(f"--load {tmp_path} --vocab-size 90")


def test_the_architecture_can_come_from_the_checkpoint(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shape = "--swiglu --num-attention-heads 2 --untie-embeddings-and-output-weights"
    train(f"{shape} --save {whole} --save-interval 1000")
    train(f"{shape} --save {parts} --save-interval 1000 --exit-interval 4")
    printed = train(
        f"--load {parts} --save {parts} --save-interval 1000 --use-checkpoint-args",
        without="--num-layers --hidden-size --num-attention-heads --max-position-embeddings",
    )
    assert "successfully loaded checkpoint" in printed
    assert_same_bits(stored(whole), stored(parts))


def test_weights_alone_start_a_new_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    train(f"--save {old} --save-interval 8")
    printed = train(f"--load {old} --finetune --save {new} --save-interval 8 --lr 0 --bf16")
    assert stored(new).iteration == 8
    assert stored(new).values["counters"]["consumed_train_samples"] == 32
    before, after = stored(old).tensors("model"), stored(new).tensors("model")
    for name, tensor in before.items():
        assert tensor.to(torch.bfloat16).equal(after[name]), name
    assert "converted to bfloat16" in printed


def test_without_optimizer_or_random_state(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 4 --exit-interval 4 --no-save-optim --no-save-rng")
    assert stored(tmp_path).groups == ("model",)
    with pytest.raises(CheckpointError, match="--no-load-optim"):
        train(f"--load {tmp_path}")
    with pytest.raises(CheckpointError, match="--no-load-rng"):
        train(f"--load {tmp_path} --no-load-optim")
    printed = train(f"--load {tmp_path} --no-load-optim --no-load-rng")
    assert len(losses(printed)) == 4


def test_another_padding_of_the_vocabulary(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    train(f"--save {old} --save-interval 1000 --exit-interval 4")
    printed = train(
        f"--load {old} --save {new} --save-interval 1000 --make-vocab-size-divisible-by 100 "
        "--exit-interval 5"
    )
    assert "embedding.word_embeddings.weight: 128 -> 100 rows" in printed
    assert stored(new).tensors("model")["embedding.word_embeddings.weight"].shape == (100, 32)
    assert stored(new).values["args"]["padded_vocab_size"] == 100


def test_nothing_to_load_is_a_warning_nobody_can_miss(tmp_path: Path) -> None:
    printed = train(f"--load {tmp_path / 'none'} --exit-interval 1")
    assert "* NO CHECKPOINT FOUND in --load" in printed
    assert len(losses(printed)) == 1
    for flag in ("--exit-on-missing-checkpoint", "--finetune", "--ckpt-step 3"):
        with pytest.raises(CheckpointError, match=flag.split()[0]):
            train(f"--load {tmp_path / 'none'} {flag}")


def test_a_newer_run_is_not_overwritten(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 8")
    before = stored(tmp_path).path.stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="--overwrite-newer-checkpoints"):
        train(f"--save {tmp_path} --save-interval 8")
    assert stored(tmp_path).path.stat().st_mtime_ns == before
    train(f"--save {tmp_path} --save-interval 2 --exit-interval 2 --overwrite-newer-checkpoints")
    assert stored(tmp_path).iteration == 2


def test_a_finished_run_is_not_written_again(tmp_path: Path) -> None:
    flags = f"--save {tmp_path} --load {tmp_path} --save-interval 100 --eval-iters 1"
    train(flags)
    before = {path: path.stat().st_mtime_ns for path in stored(tmp_path).path.iterdir()}
    printed = train(flags)
    assert losses(printed) == []
    assert "validation loss at iteration 8 on validation set" in printed
    assert {path: path.stat().st_mtime_ns for path in stored(tmp_path).path.iterdir()} == before


def test_metrics_of_a_resumed_run_go_on(tmp_path: Path) -> None:
    flags = f"--save {tmp_path} --load {tmp_path} --save-interval 1000"
    train(f"{flags} --exit-interval 3")
    train(flags)
    path = tmp_path / "metrics.jsonl"
    assert [event["iteration"] for event in metrics(path, "train")] == list(range(1, 9))
    first, second = metrics(path, "start")
    assert (first["iteration"], second["iteration"]) == (0, 3)
    assert first["args"]["padded_vocab_size"] == 128
    assert first["origins"]["exit_interval"] == "command line"
    assert "rotary_base" not in first["origins"]


def test_damaged_counters_are_named(tmp_path: Path) -> None:
    train(f"--save {tmp_path / 'a'} --save-interval 4 --exit-interval 4")
    good = load_checkpoint(tmp_path / "a")
    tensors = {group: good.tensors(group) for group in good.groups}
    for name, value in (("iteration", -1), ("consumed_train_samples", "many")):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        values = json.loads(json.dumps(good.values))
        values["counters"][name] = value
        save_checkpoint(tmp_path / "b", 4, tensors=tensors, values=values)
        with pytest.raises(CheckpointError, match=name):
            train(f"--load {tmp_path / 'b'}")


def test_every_fault_of_a_command_line_comes_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train(f"--save {tmp_path / 'x'} --lr-warmup-iters 99 --global-batch-size 3")
    assert {fault.id for fault in caught.value.faults} == {"MC0701", "MC0305", "MC0201"}
    assert not (tmp_path / "x").exists()

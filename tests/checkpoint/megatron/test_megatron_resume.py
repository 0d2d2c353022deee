"""A run goes on from what Megatron-LM saved: weights, optimizer, schedule, samples, settings."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from megatron_files import SCHEDULER, megatron_modules, write_checkpoint
from megatron_model import Shape

from megacore.checkpoint import load_checkpoint
from megacore.errors import CheckpointError, UsageError
from megacore.training.cli import checkpoint_arguments
from megacore.training.live_view import Screen
from megacore.training.log_line import parse_iteration
from megacore.training.pretrain import pretrain
from megacore.training.run_config import parse_run

# 1000 samples, 100 an iteration; the checkpoint is of iteration 7.
RUN = (
    "--seq-length 8 --micro-batch-size 50 --global-batch-size 100 --train-iters 10 --lr 1e-3 "
    "--min-lr 1e-5 --lr-decay-style cosine --weight-decay 0.1 --mock-data --num-workers 0 "
    "--tokenizer-type NullTokenizer --vocab-size 28 --make-vocab-size-divisible-by 32 "
    "--log-interval 1 --eval-iters 0 --peak-tflops 1 --no-load-rng --adam-beta2 0.95"
)
ARCHITECTURE = (
    "--num-layers 4 --hidden-size 12 --num-attention-heads 4 --kv-channels 3 "
    "--ffn-hidden-size 20 --max-position-embeddings 8"
)
SCHEDULE = {**SCHEDULER, "lr_warmup_steps": 0}


def go_on(flags: str) -> str:
    screen = io.StringIO()
    run, origins = parse_run(
        f"{RUN} {flags}".split(), read_checkpoint=checkpoint_arguments, environment={}
    )
    assert pretrain(run, origins, screen=Screen(live=False, stream=screen)) == 0
    return screen.getvalue()


@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
@pytest.mark.parametrize("style", ["te", "legacy"])
def test_everything_is_taken_over(tmp_path: Path, optimizer: str, style: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    shape = Shape(tp=2, pp=2, virtual=2)
    written = write_checkpoint(there, shape, style=style, optimizer=optimizer, scheduler=SCHEDULE)
    flags = f"--bf16 --load {there} --save {here} --save-interval 1"
    printed = go_on(f"{flags} --use-checkpoint-args --exit-interval 8")
    (record,) = [r for line in printed.splitlines() if (r := parse_iteration(line))]
    assert (record.iteration, record.consumed_samples) == (8, 800)
    # One step of Adam from what was stored: the moments are those, a little older.
    checkpoint = load_checkpoint(here)
    assert checkpoint.values["optimizer"]["step"] == 8
    assert checkpoint.values["scheduler"]["num_steps"] == 800
    found = checkpoint.tensors("optimizer")
    for name in written.model:
        before, after = written.states["exp_avg"][name], found[f"exp_avg.{name}"]
        # exp_avg' = 0.9 exp_avg + 0.1 gradient, and gradients are clipped to a norm of 1.
        assert (after - 0.9 * before).abs().max() <= 0.1 + 1e-6, name
        assert not torch.equal(after, before), name
    # The architecture may be given too, and then has to be the same.
    assert go_on(f"--bf16 --load {there} {ARCHITECTURE} --exit-interval 8").count("lm loss") == 1
    with pytest.raises(CheckpointError, match=r"num_attention_heads(.|\n)*kv_channels"):
        go_on(f"--bf16 --load {there} {ARCHITECTURE} --num-attention-heads 2 --kv-channels 6")


def test_another_schedule_is_one_message(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    with pytest.raises(UsageError, match="lr_warmup_steps"):
        go_on(f"--bf16 --load {tmp_path} --use-checkpoint-args")
    flags = f"--bf16 --load {tmp_path} --use-checkpoint-args --override-opt_param-scheduler"
    assert "iteration        8" in go_on(f"{flags} --exit-interval 8")


def test_a_bert_is_not_a_gpt(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, Shape(), style="legacy")
    file = written.path / "mp_rank_00" / "model_optim_rng.pt"
    with megatron_modules():
        state = torch.load(file, weights_only=False)
        state["model"]["binary_head"] = {"weight": torch.zeros(2, 12)}
        torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"not the model of a GPT: it holds binary_head\.w"):
        go_on(f"--bf16 --load {tmp_path} --use-checkpoint-args")


def test_random_states_of_megatron_are_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(), scheduler=SCHEDULE)
    words = f"{RUN.replace('--no-load-rng', '')} --bf16 --load {tmp_path} --use-checkpoint-args"
    screen = io.StringIO()
    run, origins = parse_run(
        f"{words} --exit-interval 8".split(),
        read_checkpoint=checkpoint_arguments,
        environment={},
    )
    assert pretrain(run, origins, screen=Screen(live=False, stream=screen)) == 0
    assert "dropout goes on from fresh random states" in screen.getvalue()
    assert "not written by megacore" in screen.getvalue()

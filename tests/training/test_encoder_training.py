"""BERT and T5 in the training loop: losses by name, resume to the bit, precision, recompute."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from training_runs import arguments, assert_same_bits, iterations, stored

from megacore.errors import CheckpointError
from megacore.testing.made_up_batches import MadeUpBert, MadeUpT5
from megacore.training.cli import checkpoint_arguments
from megacore.training.live_view import Screen
from megacore.training.pretrain import pretrain
from megacore.training.run_config import parse_run

BERT = "--model-family bert"
T5 = "--model-family t5 --decoder-seq-length 14 --vocab-extra-ids 9 --decoder-num-layers 1"
FAMILIES = {BERT: MadeUpBert, T5: MadeUpT5}
RELATIVE = "--position-embedding-type relative --normalization RMSNorm --relu"


def train(kind: str, extra: str = "") -> str:
    """Train in this process on made-up batches; what was printed."""
    screen = io.StringIO()
    run, origins = parse_run(arguments(f"{kind} {extra}"), read_checkpoint=checkpoint_arguments)
    family = FAMILIES[kind](run)
    assert pretrain(run, origins, screen=Screen(live=False, stream=screen), family=family) == 0
    return screen.getvalue()


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (BERT, "--bf16 --recompute-granularity selective"),
        (T5, "--recompute-granularity full --recompute-method block --recompute-num-layers 1"),
        (T5, f"--bf16 {RELATIVE}"),
    ],
)
def test_resumed_run_ends_bitwise_like_one_without_a_break(
    kind: str, extra: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    save = f"{extra} --save-interval 4 --save"
    train(kind, f"{save} {whole}")
    train(kind, f"{save} {broken} --exit-interval 4")
    train(kind, f"{save} {broken} --load {broken}")
    assert_same_bits(stored(whole), stored(broken))


def test_losses_of_bert_have_their_names_in_training_and_evaluation() -> None:
    printed = train(BERT, "--eval-iters 2 --eval-interval 4")
    records = iterations(printed)
    assert len(records) == 8
    assert all(set(record.losses) == {"lm loss", "sop loss"} for record in records)
    validation = [line for line in printed.splitlines() if "validation loss at" in line]
    assert len(validation) == 4
    assert all("lm loss value:" in line and "sop loss value:" in line for line in validation)


def test_bert_without_binary_head_has_one_loss() -> None:
    records = iterations(train(BERT, "--bert-no-binary-head --train-iters 2"))
    assert [set(record.losses) for record in records] == [{"lm loss"}] * 2


@pytest.mark.parametrize("kind", [BERT, T5])
def test_training_learns_to_count(kind: str) -> None:
    """Made-up sequences count upwards: the missing tokens can be known."""
    extra = "--train-iters 60 --lr 1e-2 --attention-dropout 0 --hidden-dropout 0"
    losses = [record.losses["lm loss"] for record in iterations(train(kind, extra))]
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]


def test_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    train(BERT, f"--train-iters 2 --save {tmp_path} --save-interval 2")
    with pytest.raises(CheckpointError, match="model_family"):
        train(T5, f"--load {tmp_path}")

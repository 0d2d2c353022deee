"""Training with 8-bit products: every recipe learns what bfloat16 learns; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import losses, train

from megacore.checkpoint import load_checkpoint
from megacore.data.indexed_dataset import IndexedDatasetWriter
from megacore.errors import ConfigError, UsageError

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = {
    "e4m3": "--fp8-format e4m3",
    "hybrid": "--fp8-format hybrid --fp8-amax-history-len 16 --fp8-amax-compute-algo max",
    "no wgrad": "--fp8-format hybrid --fp8-margin 1 --no-fp8-wgrad",
    "tensorwise": "--fp8-format hybrid --fp8-recipe tensorwise",
    "blockwise": "--fp8-format e4m3 --fp8-recipe blockwise",
}


@pytest.mark.parametrize(
    "recipe",
    [
        "hybrid",
        "blockwise",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("e4m3", "no wgrad", "tensorwise")),
    ],
)
def test_every_recipe_trains(recipe: str) -> None:
    flags = "--bf16 --attention-dropout 0 --hidden-dropout 0"
    plain = losses(train(flags))
    found = losses(train(f"{flags} {RECIPES[recipe]}"))
    assert found != plain
    # Eight steps from the same weights.
    assert found == pytest.approx(plain, rel=0.03)


def test_resume_is_bitwise(tmp_path: Path) -> None:
    flags = f"--bf16 {RECIPES['hybrid']} --save {tmp_path} --save-interval 4 --train-iters 6"
    first = losses(train(f"{flags} --exit-interval 4"))
    second = losses(train(f"{flags} --load {tmp_path}"))
    assert first + second == losses(train(f"--bf16 {RECIPES['hybrid']} --train-iters 6"))


def test_recompute_changes_nothing() -> None:
    flags = f"--bf16 {RECIPES['hybrid']}"
    redo = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    assert losses(train(f"{flags} {redo}")) == losses(train(flags))


def test_a_checkpoint_without_scales_is_said(tmp_path: Path) -> None:
    train(f"--bf16 --save {tmp_path} --save-interval 4 --exit-interval 4")
    printed = train(f"--bf16 {RECIPES['hybrid']} --load {tmp_path}")
    assert "no FP8 scales of decoder.layers.0.self_attention.linear_qkv and 7 more" in printed


def test_what_has_no_8_bit_products_is_refused() -> None:
    with pytest.raises(ConfigError, match="MC1231"):
        train("--bf16 --fp8-format e4m3 --ckpt-format torch")
    with pytest.raises(ConfigError, match="--fp8-amax-history-len"):
        train("--bf16 --fp8-format e4m3 --fp8-amax-history-len 0")
    with pytest.raises((ConfigError, UsageError), match="fp8"):
        train("--bf16 --fp8-format e4m3 --fp8-param-gather")


def test_flags_alone_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    train("--fp8-margin 2 --train-iters 1")
    assert "flags of FP8 have no effect without --fp8-format" in caplog.text


def write_bytes_of_docs(prefix: Path) -> None:
    """The documentation of the project as a dataset of bytes."""
    documents = [np.frombuffer(path.read_bytes(), np.uint8) for path in sorted(DOCS.glob("*.md"))]
    with IndexedDatasetWriter(str(prefix), np.uint16) as writer:
        lengths = [len(document) for document in documents]
        writer.add_documents(np.concatenate(documents).astype(np.uint16), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hybrid", "tensorwise", "blockwise"])
def test_loss_after_300_steps_is_that_of_bfloat16(recipe: str, tmp_path: Path) -> None:
    """The model of the demo on a CPU, with shorter sequences."""
    prefix = tmp_path / "docs"
    write_bytes_of_docs(prefix)
    flags = (
        f"--bf16 --num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 64 "
        f"--max-position-embeddings 64 --micro-batch-size 4 --global-batch-size 4 "
        f"--train-iters 300 --lr 1e-3 --lr-warmup-iters 20 --data-path {prefix} --vocab-size 256 "
        f"--attention-dropout 0 --hidden-dropout 0 --split 100,0,0"
    )
    plain = losses(train(flags, without="--mock-data"))
    found = losses(train(f"{flags} {RECIPES[recipe]}", without="--mock-data"))
    last, wanted = np.mean(found[-20:]), np.mean(plain[-20:])
    assert wanted < 0.6 * plain[0]
    assert abs(last - wanted) <= 0.01 * wanted


def test_state_is_stored_by_layer(tmp_path: Path) -> None:
    train(f"--bf16 {RECIPES['hybrid']} --save {tmp_path} --save-interval 8")
    values = load_checkpoint(tmp_path).values["fp8"]
    assert len(values) == 2 * 4
    state = values["decoder.layers.1.mlp.linear_fc2"]
    assert torch.tensor(state["history"]).shape == (16, 3)

"""A converted model, or one that another layout trained, is finetuned in any layout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from layout_runs import step_here
from test_layouts import Run, expect_equal, joined
from training_worlds import train_here
from worker_pool import WorkerPools

from megacore import cli
from megacore.checkpoint.lora.adapter import read_adapters, write_adapters

sys.path.append(str(Path(__file__).parents[1] / "checkpoint" / "convert"))
from hf_cases import COMMON, hf_model

RUN = "--global-batch-size 8 --lr-decay-iters 5 --eval-iters 0 --lr 1e-3"
LLAMA = (
    f"--num-layers {COMMON['num_hidden_layers']} --hidden-size {COMMON['hidden_size']} "
    f"--ffn-hidden-size {COMMON['intermediate_size']} --num-attention-heads 8 "
    f"--group-query-attention --num-query-groups 2 --kv-channels {COMMON['head_dim']} --swiglu "
    "--position-embedding-type rope --normalization RMSNorm --norm-epsilon 1e-6 "
    "--disable-bias-linear --untie-embeddings-and-output-weights --max-position-embeddings 64 "
    f"--vocab-size {COMMON['vocab_size'] - 1} --make-vocab-size-divisible-by 128"
)
LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "pp3": (3, "--pipeline-model-parallel-size 3"),
    "dp2": (2, "--data-parallel-sharding-strategy optim_grads_params"),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Flags that finetune a converted model."""
    where = tmp_path_factory.mktemp("converted")
    hf_model("llama").save_pretrained(where / "hf")
    assert cli.dispatch(["convert", str(where / "hf"), str(where / "core")]) == 0
    return f"{RUN} {LLAMA} --finetune --load {where / 'core'}"


@pytest.fixture(scope="module")
def expected(converted: str) -> Run:
    return joined([step_here(None, converted, "float64")])


@pytest.mark.parametrize(
    "name", ["tp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pp3", "dp2"))]
)
def test_converted_model_is_finetuned_alike(
    world: WorkerPools, converted: str, expected: Run, name: str
) -> None:
    size, flags = LAYOUTS[name]
    found = joined(world(size).run(step_here, f"{converted} {flags}", "float64"))
    expect_equal(found, expected, bound=1e-10)


def test_checkpoint_of_one_process_is_finetuned_by_two(world: WorkerPools, tmp_path: Path) -> None:
    first = train_here(None, f"{RUN} --save {tmp_path} --save-interval 5", "float64")
    flags = f"{RUN} --finetune --load {tmp_path}"
    alone = joined([step_here(None, flags, "float64")])
    split = world(2).run(step_here, f"{flags} {LAYOUTS['tp2'][1]}", "float64")
    expect_equal(joined(split), alone, bound=1e-10)
    # It goes on from what was trained, at iteration 0 and a fresh optimizer.
    fresh = step_here(None, RUN, "float64")
    assert alone.losses[0] < fresh.losses[0]
    assert "successfully saved checkpoint from iteration       5" in first.printed


def test_adapters_from_elsewhere_are_a_start(tmp_path: Path) -> None:
    base = tmp_path / "base"
    train_here(None, f"{RUN} --save {base} --save-interval 5", "float64")
    flags = f"{RUN} --lora-rank 2 --pretrained-checkpoint {base}"
    trained = tmp_path / "trained"
    train_here(None, f"{flags} --save {trained} --save-interval 5 --load {trained}", "float64")
    adapters = read_adapters(trained)
    assert adapters.targets == ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    write_adapters(adapters, tmp_path / "copy", adapters.arguments)
    again = step_here(None, f"{flags} --load {tmp_path / 'copy'}", "float64")
    from_zero = step_here(None, flags, "float64")
    # A release: iteration 0 with the weights of the adapters.
    assert len(again.losses) == 5
    assert again.losses[0] < from_zero.losses[0]

"""Adapters are trained in every layout as in one process, on a base that stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layout_runs import step_here
from test_layouts import Run, expect_equal, joined
from training_worlds import full_weights, train_here
from worker_pool import WorkerPools

RUN = (
    "--num-layers 4 --global-batch-size 8 --lr-decay-iters 5 --eval-iters 0 "
    "--group-query-attention --num-query-groups 2 --swiglu --position-embedding-type rope "
    "--normalization RMSNorm --disable-bias-linear"
)
LORA = "--lora-rank 3 --lora-alpha 8"
# Name -> processes and flags; between them every kind of parallelism and recompute.
LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "tp2-sp-pieces-dp2-optim": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --tp-comm-overlap "
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
        "--ddp-bucket-size 300",
    ),
    "pp2-zb-tp2": (
        4,
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel "
        "--pipeline-schedule zb-h1",
    ),
    "pp2-interleaved-dp2": (
        4,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "
        "--calculate-per-token-loss",
    ),
    "cp2-dp2-params": (
        4,
        "--context-parallel-size 2 --data-parallel-sharding-strategy optim_grads_params "
        "--recompute-activations",
    ),
    "tp2-sliced-recompute": (
        2,
        "--tensor-model-parallel-size 2 --recompute-granularity full --recompute-method block "
        "--recompute-num-layers 3 --distribute-saved-activations",
    ),
}
# The others run with the slow tests.
QUICK = ("tp2-sp-pieces", "pp2-zb", "cp2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of float64 weights."""
    where = tmp_path_factory.mktemp("base")
    flags = f"{RUN} --save {where} --save-interval 9 --no-save-optim --train-iters 1"
    train_here(None, flags, "float64")
    return f"{RUN} --pretrained-checkpoint {where}"


@pytest.fixture(scope="module")
def expected(base: str) -> Run:
    return joined([step_here(None, f"{base} {LORA}", "float64")])


@pytest.mark.parametrize(
    "name",
    [n if n.startswith(QUICK) else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS],
)
def test_layout_equals_one_process(world: WorkerPools, base: str, expected: Run, name: str) -> None:
    size, flags = LAYOUTS[name]
    if "per-token" in flags:
        expected = joined([step_here(None, f"{base} {LORA} --calculate-per-token-loss", "float64")])
    found = joined(world(size).run(step_here, f"{base} {LORA} {flags}", "float64", timeout=300.0))
    expect_equal(found, expected, bound=1e-10)


def test_only_the_adapters_are_trained_and_kept(base: str, expected: Run) -> None:
    names = {name for name in expected.state if not name.startswith(("exp_avg", "main_param"))}
    assert len(names) == 4 * 4 * 2
    assert all(".adapter.linear_" in name for name in expected.state)
    losses = expected.losses
    assert losses[-1] < losses[0]
    # The second half starts at zero: the first loss is that of the base model.
    plain = step_here(None, base, "float64")
    assert plain.losses[0] == losses[0]


def test_adapters_resume_in_another_layout(world: WorkerPools, base: str, tmp_path: Path) -> None:
    directory = tmp_path / "adapters"
    flags = f"{base} {LORA} --load {directory} --save {directory} --save-interval 2"
    whole = train_here(None, f"{base} {LORA}", "float64")
    stop = train_here(None, f"{flags} --exit-interval 2", "float64")
    assert "NO CHECKPOINT FOUND" not in stop.printed
    layout = "--tensor-model-parallel-size 2 --sequence-parallel"
    resumed = world(2).run(train_here, f"{flags} {layout}", "float64", timeout=120.0)
    assert "at iteration 2" in resumed[0].printed
    found, wanted = full_weights(resumed), full_weights([whole])
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-10, atol=1e-12), name


def test_dropout_of_adapters_is_the_same_again_after_recompute(
    world: WorkerPools, base: str
) -> None:
    flags = f"{base} {LORA} --lora-dropout 0.3 --tensor-model-parallel-size 2 --sequence-parallel"
    recompute = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    kept = joined(world(2).run(step_here, flags, "float64"))
    again = joined(world(2).run(step_here, f"{flags} {recompute}", "float64"))
    expect_equal(again, kept, bound=1e-12)

"""8-bit products in whole training runs: layouts, resume, and scales that all processes share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_worlds import Trained, full_weights, train_here
from worker_pool import WorkerPools

from megacore.checkpoint import load_checkpoint

FP8 = (
    "--fp8-format hybrid --fp8-amax-history-len 3 --fp8-amax-compute-algo max "
    "--ffn-hidden-size 32 --swiglu --disable-bias-linear"
)
LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "tp2-sp-dp2": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer",
    ),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
}


def run(world: WorkerPools, layout: str, flags: str) -> list[Trained]:
    size, its_flags = LAYOUTS[layout]
    return world(size).run(train_here, f"{FP8} {its_flags} {flags}", "float32")


@pytest.mark.parametrize(
    "layout",
    ["tp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tp2-sp-dp2", "pp2"))],
)
def test_every_layout_scales_like_one_process(
    world: WorkerPools, layout: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    alone = train_here(None, f"{FP8} --save {one} --save-interval 5", "float32")
    results = run(world, layout, f"--save {other} --save-interval 5")
    expected, found = load_checkpoint(one).values["fp8"], load_checkpoint(other).values["fp8"]
    assert found.keys() == expected.keys()
    assert len(expected) == 4 * 4
    for name, state in expected.items():
        assert state["updates"] == found[name]["updates"] == 5
        scale = torch.tensor(state["scale"])
        assert not torch.equal(scale, torch.ones(3))
        ratio = torch.tensor(found[name]["scale"]) / scale
        # Codes near the middle of two may fall to either side. A process with half of the
        # micro-batches weighs each of them twice, so that gradients have other scales.
        alike = ratio[:2] if "dp2" in layout else ratio
        assert torch.allclose(alike, torch.ones_like(alike), rtol=0.02), name
        assert 0.25 < ratio[2] < 1.2, name
    weights = full_weights([alone])
    for name, tensor in full_weights(results).items():
        assert (tensor - weights[name]).norm() <= 0.05 * weights[name].norm(), name


@pytest.mark.slow
def test_resume_is_bitwise(world: WorkerPools, tmp_path: Path) -> None:
    whole = run(world, "tp2-sp-dp2", "")
    run(world, "tp2-sp-dp2", f"--save {tmp_path} --save-interval 2 --exit-interval 2")
    resumed = run(world, "tp2-sp-dp2", f"--load {tmp_path}")
    for one, other in zip(whole, resumed, strict=True):
        for name, (_, weight) in one.weights.items():
            assert torch.equal(weight, other.weights[name][1]), name

"""Runs that go on from a `torch` checkpoint are those that go on from a `torch_dist` one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_worlds import Trained, full_weights, train_here
from worker_pool import WorkerPools

from megacore.checkpoint.megatron.checkpoint import MegatronCheckpoint

LENGTH = (
    "--train-iters 6 --lr-decay-iters 6 --swiglu --group-query-attention --num-query-groups 2 "
    "--attention-dropout 0.1 --hidden-dropout 0.1"
)
LAYOUTS = {
    "single": (1, ""),
    "dp2-sharded": (2, "--use-distributed-optimizer"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
    "pp2-virtual2": (
        2,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    ),
    "pp2-uneven": (2, "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 1"),
    "tp2-pp2-zb-v": (
        4,
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --pipeline-schedule zb-v",
    ),
    "tp2-sp-dp2-sharded-overlapped": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer "
        "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 2000",
    ),
    "cp2-dp2-all-sharded": (
        4,
        "--context-parallel-size 2 --data-parallel-sharding-strategy optim_grads_params",
    ),
}
# Layout before, layout after, further flags, and the directories of the ranks.
CHANGES = [
    ("tp2-pp2-zb-v", "pp2", "--optimizer sgd", 8),
    ("pp2-virtual2", "single", "", 2),
    ("tp2-sp-dp2-sharded-overlapped", "tp2-sp-dp2-sharded-overlapped", "--bf16", 2),
]
MORE_CHANGES = [
    ("single", "tp2-pp2-zb-v", "--bf16", 1),
    ("pp2-uneven", "dp2-sharded", "--bf16 --untie-embeddings-and-output-weights", 2),
    ("tp2-pp2-zb-v", "tp2-pp2-zb-v", "--bf16", 8),
    ("dp2-sharded", "pp2-virtual2", "--fp16 --initial-loss-scale 1024", 1),
    ("tp2-sp-dp2-sharded-overlapped", "pp2", "", 2),
    ("cp2-dp2-all-sharded", "cp2-dp2-all-sharded", "--bf16", 1),
]


def run(world: WorkerPools, layout: str, flags: str) -> list[Trained]:
    size, layout_flags = LAYOUTS[layout]
    line = f"{LENGTH} {layout_flags} {flags}"
    if size == 1:
        return [train_here(None, line)]
    return world(size).run(train_here, line)


@pytest.mark.parametrize(
    ("before", "after", "flags", "num_ranks"),
    [*CHANGES, *(pytest.param(*row, marks=pytest.mark.all_layouts) for row in MORE_CHANGES)],
)
def test_both_formats_resume_alike(
    world: WorkerPools, tmp_path: Path, before: str, after: str, flags: str, num_ranks: int
) -> None:
    weights = {}
    for name in ("torch", "torch_dist"):
        directory = tmp_path / name
        save = f"--save {directory} --save-interval 3 --exit-interval 3 --ckpt-format {name}"
        run(world, before, f"{flags} {save}")
        # The format is seen, whatever the flag says.
        resumed = run(world, after, f"{flags} --load {directory}")
        assert "at iteration 3" in resumed[0].printed
        assert ("dropout goes on from fresh" in resumed[0].printed) == (before != after)
        weights[name] = full_weights(resumed)
    path = tmp_path / "torch" / "iter_0000003"
    assert len(list(path.glob("mp_rank_*/model_optim_rng.pt"))) == num_ranks
    MegatronCheckpoint(path, verify=(0, 1)).parts("optimizer")
    assert weights["torch"].keys() == weights["torch_dist"].keys()
    for name, tensor in weights["torch_dist"].items():
        assert torch.equal(weights["torch"][name], tensor), name

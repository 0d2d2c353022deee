"""A run that is interrupted and goes on in another layout is the run that was not interrupted."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import pytest
import torch
from training_worlds import Trained, full_weights, train_here
from worker_pool import WorkerPools

from megacore.checkpoint import load_checkpoint

LENGTH = "--train-iters 6 --lr-decay-iters 6 --swiglu --group-query-attention --num-query-groups 2"
LAYOUTS = {
    "single": (1, ""),
    "dp2-sharded": (2, "--use-distributed-optimizer"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
    "tp2-sp-dp2-sharded-overlapped": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer "
        "--overlap-grad-reduce --overlap-param-gather",
    ),
    "tp2-pp2-zb-v": (
        4,
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --pipeline-schedule zb-v",
    ),
    "tp2-dp2": (4, "--tensor-model-parallel-size 2"),
    "dp2-tp2": (4, "--tensor-model-parallel-size 2 --order dp-tp-cp-ep-pp"),
    "dp2-all-sharded": (2, "--data-parallel-sharding-strategy optim_grads_params"),
    "cp2-dp2-sharded": (4, "--context-parallel-size 2 --use-distributed-optimizer"),
}
CHANGES = [
    ("single", "tp2-sp-dp2-sharded-overlapped"),
    ("tp2-sp-dp2-sharded-overlapped", "pp2"),
    ("pp2", "single"),
    ("tp2-pp2-zb-v", "dp2-sharded"),
    ("dp2-sharded", "tp2-pp2-zb-v"),
    ("cp2-dp2-sharded", "cp2-dp2-sharded"),
    ("pp2", "dp2-all-sharded"),
    ("dp2-all-sharded", "single"),
]
MORE_LAYOUTS = {
    "pp2-virtual2": (
        2,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    ),
    "pp4-dp2-sharded": (8, "--pipeline-model-parallel-size 4 --use-distributed-optimizer"),
    "tp2-pp2-dp2-sharded": (
        8,
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 "
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
    ),
    "tp2-cp2-dp2": (8, "--tensor-model-parallel-size 2 --context-parallel-size 2"),
    "dp8-sharded": (8, "--use-distributed-optimizer"),
    "dp4-grads-sharded": (4, "--data-parallel-sharding-strategy optim_grads"),
    "tp2-dp4-all-sharded": (
        8,
        "--tensor-model-parallel-size 2 --data-parallel-sharding-strategy optim_grads_params",
    ),
    "cp2-pp2-dp2-first-writes": (
        8,
        "--context-parallel-size 2 --pipeline-model-parallel-size 2 --no-ckpt-fully-parallel-save",
    ),
}
# Every layout is written once for each of two others to read: 34 pairs.
ALL_LAYOUTS = LAYOUTS | MORE_LAYOUTS
NAMES = list(ALL_LAYOUTS)
MATRIX = [
    (name, NAMES[(i * 5 + step * 7 + 3) % len(NAMES)])
    for step in (0, 1)
    for i, name in enumerate(NAMES)
]


def run(world: WorkerPools, layout: str, flags: str, dtype: str | None) -> list[Trained]:
    size, layout_flags = ALL_LAYOUTS[layout]
    line = f"{LENGTH} {layout_flags} {flags}"
    if size == 1:
        return [train_here(None, line, dtype)]
    return world(size).run(train_here, line, dtype)


@functools.cache
def uninterrupted(untie: str, dtype: str) -> dict[str, torch.Tensor]:
    return full_weights([train_here(None, f"{LENGTH} {untie}", dtype)])


@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize("untie", ["", "--untie-embeddings-and-output-weights"])
def test_resume_in_another_layout(
    world: WorkerPools, tmp_path: Path, before: str, after: str, untie: str
) -> None:
    run(world, before, f"{untie} --save {tmp_path} --save-interval 3 --exit-interval 3", "float64")
    assert load_checkpoint(tmp_path).iteration == 3
    resumed = run(world, after, f"{untie} --load {tmp_path}", "float64")
    assert "at iteration 3" in resumed[0].printed
    expected, found = uninterrupted(untie, "float64"), full_weights(resumed)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        error = (found[name] - weight).norm() / weight.norm().clamp_min(1e-30)
        assert error < 1e-10, name


@functools.cache
def uninterrupted_state(optimizer: str) -> tuple[dict[str, torch.Tensor], str]:
    """The optimizer state at the end, and what was printed."""
    with tempfile.TemporaryDirectory() as directory:
        flags = f"{LENGTH} {optimizer} --save {directory} --save-interval 6"
        printed = train_here(None, flags, "float64").printed
        return load_checkpoint(directory).tensors("optimizer"), printed


def losses(printed: str) -> list[str]:
    """The loss of every iteration, as printed."""
    return re.findall(r"lm loss: (\S+)", printed)


@pytest.mark.all_layouts
@pytest.mark.parametrize(("before", "after"), MATRIX)
def test_optimizer_state_and_losses_in_another_layout(
    world: WorkerPools, tmp_path: Path, before: str, after: str
) -> None:
    optimizer = "--optimizer sgd" if "virtual" in before else ""
    first, second = tmp_path / "first", tmp_path / "second"
    saving = f"--save {first} --save-interval 3 --exit-interval 3"
    run(world, before, f"{optimizer} {saving}", "float64")
    loading = f"--load {first} --save {second} --save-interval 6"
    resumed = run(world, after, f"{optimizer} {loading}", "float64")
    expected, printed = uninterrupted_state(optimizer)
    found = load_checkpoint(second).tensors("optimizer")
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        error = (found[name] - state).norm() / state.norm().clamp_min(1e-30)
        assert error < 1e-9, name
    assert any(losses(result.printed)[:3] == losses(printed)[3:6] for result in resumed)


@pytest.mark.parametrize("layout", ["tp2-sp-dp2-sharded-overlapped", "tp2-pp2-zb-v"])
def test_resume_in_the_same_layout_is_bitwise_with_dropout(
    world: WorkerPools, tmp_path: Path, layout: str
) -> None:
    dropout = "--attention-dropout 0.1 --hidden-dropout 0.1 --bf16"
    whole = run(world, layout, dropout, None)
    run(world, layout, f"{dropout} --save {tmp_path} --save-interval 2 --exit-interval 4", None)
    resumed = run(world, layout, f"{dropout} --load {tmp_path}", None)
    for one, other in zip(whole, resumed, strict=True):
        for name, (_, weight) in one.weights.items():
            assert torch.equal(weight, other.weights[name][1]), name


@pytest.mark.parametrize(("before", "kept"), [("tp2-dp2", False), ("dp2-tp2", True)])
def test_random_states_are_those_of_the_same_place(
    world: WorkerPools, tmp_path: Path, before: str, kept: bool
) -> None:
    run(world, before, f"--save {tmp_path} --save-interval 2 --exit-interval 2", "float64")
    resumed = run(world, "dp2-tp2", f"--load {tmp_path}", "float64")
    assert ("another layout of processes" in resumed[0].printed) != kept


@pytest.mark.parametrize("layout", ["tp2-dp2", "cp2-dp2-sharded"])
def test_reading_for_each_other_gives_what_reading_alone_does(
    world: WorkerPools, tmp_path: Path, layout: str
) -> None:
    """A process that did not get what another one read would go on with its initial weights."""
    run(world, "single", f"--save {tmp_path} --save-interval 3 --exit-interval 3", "float64")
    alone = run(world, layout, f"--load {tmp_path}", "float64")
    flags = f"--load {tmp_path} --ckpt-fully-parallel-load"
    shared = run(world, layout, flags, "float64")
    for one, other in zip(alone, shared, strict=True):
        for name, (_, weight) in one.weights.items():
            assert torch.equal(weight, other.weights[name][1]), name

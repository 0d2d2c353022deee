"""Replicas against one process on the same global batch."""

from __future__ import annotations

import functools

import pytest
import torch
from data_training import MICROBATCHES, Case, Result, train
from torch import Tensor
from worker_pool import WorkerPools

PLAIN = {"ddp_bucket_size": 3000}
OVERLAP = {**PLAIN, "overlap_grad_reduce": True}
SHARDED = {**PLAIN, "use_distributed_optimizer": True}
SHARDED_OVERLAP = {**SHARDED, "overlap_grad_reduce": True}
ALL = {**SHARDED_OVERLAP, "overlap_param_gather": True}
MODES = {
    "plain": PLAIN,
    "one-bucket": {},
    "overlap": OVERLAP,
    "average-in-collective": {**OVERLAP, "ddp_average_in_collective": True},
    "sharded": SHARDED,
    "sharded-one-bucket": {"use_distributed_optimizer": True},
    "sharded-overlap": SHARDED_OVERLAP,
    "all": ALL,
    "all-average": {**ALL, "ddp_average_in_collective": True},
}


@functools.cache
def _alone(key: str) -> Result:
    return train(None, CASES[key])


CASES = {
    "adam": Case(),
    "sgd": Case(optimizer={"optimizer": "sgd"}),
    "no-clip": Case(optimizer={"clip_grad": 0.0}),
    "untied": Case(model={"untie_embeddings_and_output_weights": True}),
    "decoupled-free": Case(model={"position_embedding_type": "rope", "swiglu": True}),
    "frozen": Case(frozen="layers.1."),
    "per-token": Case(per_token=True),
}


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= 1e-10 * max(scale, 1e-300), what


def check(found: Result, alone: Result, size: int, rank: int) -> None:
    assert found.grads.keys() == alone.grads.keys()
    for name, grad in alone.grads.items():
        close(found.grads[name], grad, f"gradient of {name}, rank {rank} of {size}")
    assert found.params.keys() == alone.params.keys()
    for name, param in alone.params.items():
        close(found.params[name], param, f"{name}, rank {rank} of {size}")
    assert found.state.keys() == alone.state.keys()
    for name, tensor in alone.state.items():
        close(found.state[name], tensor, f"{name}, rank {rank} of {size}")
    assert found.norms == pytest.approx(alone.norms, rel=1e-10)
    # 40 are of positions that do not occur; the gradient of the bias of the keys is zero but for
    # rounding, so a few of its elements may be.
    assert all(abs(a - b) <= 5 for a, b in zip(found.zeros, alone.zeros, strict=True))
    assert found.params_norm == pytest.approx(alone.params_norm, rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_replicas_equal_one_process(world: WorkerPools, size: int, mode: str) -> None:
    case = Case(parallel=MODES[mode])
    results = world(size).run(train, case)
    for rank, found in enumerate(results):
        check(found, _alone("adam"), size, rank)
    per_step = torch.stack([torch.stack(r.losses).view(-1, MICROBATCHES).sum(1) for r in results])
    wanted = torch.stack(_alone("adam").losses).view(-1, MICROBATCHES).sum(1)
    close(per_step.mean(0), wanted, "losses")


@pytest.mark.parametrize("key", sorted(set(CASES) - {"adam"}))
@pytest.mark.parametrize("mode", ["overlap", "all"])
def test_kinds_of_training(world: WorkerPools, mode: str, key: str) -> None:
    case = Case(**{**vars(CASES[key]), "parallel": MODES[mode]})
    for rank, found in enumerate(world(2).run(train, case)):
        check(found, _alone(key), 2, rank)


def bitwise(one: Result, other: Result) -> None:
    assert one.norms == other.norms
    for mine, theirs in ((one.grads, other.grads), (one.params, other.params)):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("off", "on"), [(PLAIN, OVERLAP), (SHARDED, ALL)])
def test_overlap_changes_nothing(
    world: WorkerPools, off: dict, on: dict, dtype: torch.dtype
) -> None:
    precision = {"bf16": dtype == torch.bfloat16}
    without = world(3).run(train, Case(dtype=dtype, precision=precision, parallel=off))
    overlapped = Case(dtype=dtype, precision=precision, parallel=on)
    for runs in (
        world(3).run(train, overlapped),
        world(3).run(train, overlapped),
        world(3).run(train, Case(**{**vars(overlapped), "announce": False})),
    ):
        for one, other in zip(without, runs, strict=True):
            bitwise(one, other)
            bitwise(other, runs[0])  # all replicas have the same


@pytest.mark.parametrize("parallel", [OVERLAP, ALL], ids=["overlap", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(world: WorkerPools, parallel: dict, dtype: torch.dtype) -> None:
    """Gradients of the first step are as close to float64 as those of one process, twice over."""
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    precision = {kind: True, "loss_scale": 1024.0 if kind == "fp16" else None}
    case = Case(dtype=dtype, precision=precision, parallel=parallel, steps=1)
    alone = train(None, case)
    exact = train(None, Case(dtype=torch.float64, steps=1))
    scale = precision["loss_scale"] or 1.0
    for found in world(2).run(train, case):
        for name, true in exact.grads.items():
            error = float((alone.grads[name].double() / scale - true).abs().max())
            rounding = torch.finfo(dtype).eps * float(true.abs().max())
            mine = float((found.grads[name].double() / scale - true).abs().max())
            assert mine <= 2 * max(error, rounding), name

"""BERT and T5 in any layout are what one process trains: losses, gradients and weights."""

from __future__ import annotations

import functools

import pytest
from layout_checks import Run, expect_equal, joined
from layout_runs import step_here
from worker_pool import WorkerPools

from megacore.testing.made_up_batches import MadeUpBert, MadeUpT5

RUN = "--num-layers 4 --micro-batch-size 2 --global-batch-size 16 --train-iters 3"
BERT = f"{RUN} --model-family bert"
T5 = f"{RUN} --model-family t5 --num-layers 2 --decoder-seq-length 10 --vocab-extra-ids 9"
RELATIVE = (
    "--position-embedding-type relative --normalization RMSNorm --disable-bias-linear --geglu "
    "--relative-attention-num-buckets 6 --relative-attention-max-distance 9"
)
TP, SP = "--tensor-model-parallel-size 2", "--tensor-model-parallel-size 2 --sequence-parallel"
PP = "--pipeline-model-parallel-size 2"
ZERO = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"

# name -> (family, model, layout, processes)
CASES = {
    "bert-tp": (MadeUpBert, BERT, TP, 2),
    "bert-sp-dp": (MadeUpBert, BERT, f"{SP} {ZERO} {FULL}", 4),
    "bert-pp": (MadeUpBert, BERT, PP, 2),
    "bert-post-norm-sp-pp-interleaved": (
        MadeUpBert,
        f"{BERT} --apply-residual-connection-post-layernorm",
        f"{SP} {PP} --num-layers-per-virtual-pipeline-stage 1",
        4,
    ),
    "bert-no-binary-head-zb-v": (
        MadeUpBert,
        f"{BERT} --bert-no-binary-head",
        f"{PP} --pipeline-schedule zb-v",
        2,
    ),
    "bert-untied-params": (
        MadeUpBert,
        f"{BERT} --untie-embeddings-and-output-weights",
        "--data-parallel-sharding-strategy optim_grads_params",
        2,
    ),
    "t5-tp": (MadeUpT5, T5, f"{TP} --recompute-granularity selective", 2),
    "t5-relative-sp-dp": (MadeUpT5, f"{T5} {RELATIVE}", f"{SP} {ZERO} {FULL}", 4),
    "t5-pp": (MadeUpT5, T5, PP, 2),
    "t5-pp-split": (
        MadeUpT5,
        f"{T5} --decoder-num-layers 1",
        f"{SP} {PP} --pipeline-model-parallel-split-rank 1",
        4,
    ),
    "t5-untied-interleaved": (
        MadeUpT5,
        f"{T5} --untie-embeddings-and-output-weights --decoder-num-layers 6",
        f"{PP} --num-layers-per-virtual-pipeline-stage 1",
        2,
    ),
    "t5-zb-h1": (MadeUpT5, T5, f"{PP} --pipeline-schedule zb-h1", 2),
}


@functools.cache
def single(family: type, flags: str) -> Run:
    return joined([step_here(None, flags, "float64", family)])


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(world: WorkerPools, name: str) -> None:
    family, model, layout, size = CASES[name]
    results = world(size).run(step_here, f"{model} {layout}", "float64", family, timeout=300.0)
    expect_equal(joined(results), single(family, model), bound=1e-10)

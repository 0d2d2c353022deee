"""Estimates against the simulated world, which counts on the tensors of the engine itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megacore.errors import UsageError
from megacore.planning.estimates import estimate
from megacore.planning.hardware import load_profile
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel
from megacore.planning.simulate_world import simulate_world
from megacore.training.flops import ModelShape, training_flops
from megacore.training.run_config import RunConfig, parse_run

GPT = (
    "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512 "
    "--max-position-embeddings 512 "
)
LLAMA = (
    "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512 "
    "--position-embedding-type rope --disable-bias-linear --swiglu --ffn-hidden-size 1408 "
    "--normalization RMSNorm --group-query-attention --num-query-groups 4 --hidden-dropout 0 "
    "--attention-dropout 0 --untie-embeddings-and-output-weights "
)
COMMON = (
    "--bf16 --lr 1e-3 --train-iters 10 --mock-data --tokenizer-type NullTokenizer "
    "--vocab-size 5000 --global-batch-size 16 "
)
PROFILE = replace(load_profile("a100-80gb"), reserve_bytes=0.0, allocator_slack=0.0)
PIPELINE = {"pp": 4, "micro_batch": 2}
CASES = [
    (GPT, Layout(micro_batch=2)),
    (GPT, Layout(tp=2, dp=2, sharding="optim", recompute="selective")),
    (GPT, Layout(tp=4, sequence_parallel=True, recompute="full", dp=2)),
    (GPT, Layout(**PIPELINE, tp=2, sequence_parallel=True, schedule="1f1b")),
    (GPT, Layout(**PIPELINE, schedule="interleaved", virtual_stages=2, dp=2, sharding="optim")),
    (LLAMA, Layout(cp=4, dp=2, sharding="optim")),
    (LLAMA, Layout(cp=2, tp=2, sequence_parallel=True, recompute="full")),
    (LLAMA, Layout(**PIPELINE, schedule="zb-v", virtual_stages=2)),
    (LLAMA, Layout(dp=4, sharding="optim_grads_params")),
    (LLAMA, Layout(dp=4, sharding="optim", overlap_grad_reduce=True)),
]


def run_of(flags: str, layout: Layout) -> tuple[RunConfig, PlanModel]:
    world = ["--simulate-world", str(layout.world_size)]
    plain, _ = parse_run([*(flags + COMMON).split(), "--micro-batch-size", "1"], environment={})
    # The null tokenizer adds a token for the end of documents.
    model = PlanModel.of(plain.resolved(), vocab_size=5001)
    words = [*(flags + COMMON).split(), *layout.flags(model), *world]
    return parse_run(words, environment={})[0], model


@pytest.mark.parametrize(("flags", "layout"), CASES)
def test_memory_and_volume_are_those_of_the_engine(flags: str, layout: Layout) -> None:
    run, model = run_of(flags, layout)
    world = simulate_world(run)
    step = estimate(layout, model, PROFILE, 16)
    assert step.num_microbatches == world.num_microbatches
    axes = {"dp_cp": "dp", "embedding": "pp"}
    for kind in world.ranks:
        rank = kind.pipeline_ranks[0]
        sent = dict.fromkeys(("tp", "cp", "pp", "dp"), 0)
        for (group, _), size in kind.traffic.sent_bytes.items():
            sent[axes.get(group, group)] += size
        for axis, size in sent.items():
            # A few numbers of norms and counters are not planned for.
            assert step.volume_by_rank[rank][axis] == pytest.approx(size, rel=2e-3, abs=64), axis
    by_rank = {rank: kind for kind in world.ranks for rank in kind.pipeline_ranks}
    fullest = max(by_rank.values(), key=lambda kind: kind.total_bytes)
    state = sum(
        step.memory[name]
        for name in ("parameters", "gradients", "main_parameters", "optimizer_state")
    )
    assert state == fullest.state.total
    # Tables of rotary angles are not counted.
    assert step.memory["activations"] == pytest.approx(fullest.activation_bytes, rel=0.03)
    if layout.sharding in ("no_shard", "optim"):
        # What is gathered for a while is not in the tensors of the simulated world.
        assert step.memory_bytes == pytest.approx(fullest.total_bytes, rel=0.03)


def test_flops_are_those_of_the_log() -> None:
    run, model = run_of(LLAMA, Layout())
    shape = ModelShape.of(run.resolved().model, padded_vocab=model.padded_vocab(1), seq_length=512)
    assert model.flops(16) == pytest.approx(training_flops(shape, 16), rel=1e-12)
    assert model.flops(16, "causal") == pytest.approx(
        training_flops(shape, 16, causal=True), rel=1e-12
    )


def test_breakdown_ops_and_rates_agree() -> None:
    _, model = run_of(GPT, Layout())
    layout = Layout(tp=2, dp=2, sharding="optim", overlap_grad_reduce=True)
    step = estimate(layout, model, PROFILE, 16)
    assert sum(step.breakdown.values()) == pytest.approx(step.step_s, rel=1e-12)
    for category in ("matmul", "attention", "memory_bound"):
        ops = [op for op in step.ops if op.category == category]
        total = sum(op.forward_s + op.backward_s for op in ops)
        assert total == pytest.approx(step.breakdown[category], rel=1e-9), category
    assert step.tokens_per_s == pytest.approx(16 * 512 / step.step_s)
    assert step.mfu_full == pytest.approx(step.tflops_per_gpu / 312, rel=1e-12)
    assert 0 < step.mfu_causal < step.mfu_full == step.hfu < 1
    assert step.timeline() is None


def test_timeline_is_the_pipeline_that_was_counted() -> None:
    _, model = run_of(GPT, Layout())
    step = estimate(Layout(pp=4, schedule="1f1b"), model, PROFILE, 16)
    timeline = step.timeline()
    assert len(timeline.ranks) == 4
    known = sum(step.breakdown[key] for key in ("optimizer", "other"))
    assert timeline.makespan_us * 1e-6 == pytest.approx(step.step_s - known, rel=0.02)


def test_layout_that_cannot_be_run_is_refused() -> None:
    _, model = run_of(GPT, Layout())
    with pytest.raises(UsageError, match="attention heads do not divide"):
        estimate(Layout(tp=3), model, PROFILE, 16)
    with pytest.raises(UsageError, match="no peak_flops for fp8"):
        PROFILE.to_core("fp8")


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_families(family: str) -> None:
    _, model = run_of(GPT, Layout())
    decoder = {"decoder_layers": 4, "decoder_seq_length": 128} if family == "t5" else {}
    other = replace(model, family=family, **decoder)
    step = estimate(Layout(tp=2), other, PROFILE, 16)
    assert step.step_s > 0
    # Attention to both sides is twice the work of causal attention.
    causal = estimate(Layout(tp=2), model, PROFILE, 16)
    assert step.breakdown["attention"] >= 1.99 * causal.breakdown["attention"]
    with pytest.raises(UsageError, match="context parallelism needs causal attention"):
        estimate(Layout(cp=2), other, PROFILE, 16)

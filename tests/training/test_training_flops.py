"""Operation and memory counts against direct sums over the matrices of a model."""

from __future__ import annotations

import dataclasses

import pytest

from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.training.flops import ModelShape, recompute_flops, training_flops
from megacore.training.footprint import (
    Footprint,
    format_theoretical_memory,
    selective_activation_bytes,
    weight_and_optimizer_bytes,
)

PLAIN = ModelShape(
    layers=3,
    hidden=48,
    heads=6,
    groups=6,
    head_width=8,
    ffn=192,
    gated=False,
    untied=False,
    padded_vocab=128,
    seq_length=40,
)
GROUPED = dataclasses.replace(
    PLAIN, groups=2, head_width=16, ffn=100, gated=True, untied=True, padded_vocab=384
)
TWO = Footprint(micro_batch_size=2)


def forward_flops(shape: ModelShape, batch: int, *, causal: bool = False) -> int:
    """2 operations per weight and token, plus the two products with the attention matrix."""
    tokens = batch * shape.seq_length
    width = shape.heads * shape.head_width
    kv_width = shape.groups * shape.head_width
    weights = shape.hidden * (width + 2 * kv_width) + width * shape.hidden
    weights += (3 if shape.gated else 2) * shape.hidden * shape.ffn
    attention = 2 * 2 * tokens * shape.seq_length * width
    if causal:
        attention //= 2
    head = 2 * tokens * shape.hidden * shape.padded_vocab
    return shape.layers * (2 * tokens * weights + attention) + head


@pytest.mark.parametrize("shape", [PLAIN, GROUPED])
@pytest.mark.parametrize("causal", [False, True])
def test_training_is_three_forwards(shape: ModelShape, causal: bool) -> None:
    expected = 3 * forward_flops(shape, 7, causal=causal)
    assert training_flops(shape, 7, causal=causal) == pytest.approx(expected, rel=1e-12)


def test_recompute_adds_the_forward_that_is_repeated() -> None:
    head = 2 * 5 * GROUPED.seq_length * GROUPED.hidden * GROUPED.padded_vocab
    layers = forward_flops(GROUPED, 5) - head
    full = RecomputeConfig(
        recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
    )
    assert recompute_flops(GROUPED, 5, full) == pytest.approx(layers, rel=1e-12)
    block = dataclasses.replace(full, recompute_method="block", recompute_num_layers=2)
    assert recompute_flops(GROUPED, 5, block) == pytest.approx(layers * 2 / 3, rel=1e-12)
    selective = RecomputeConfig(recompute_activations=True)
    core = 3 * 4 * 5 * GROUPED.seq_length**2 * GROUPED.heads * GROUPED.head_width
    assert recompute_flops(GROUPED, 5, selective) == pytest.approx(core, rel=1e-12)
    assert recompute_flops(GROUPED, 5, RecomputeConfig()) == 0.0


@pytest.mark.parametrize("shape", [PLAIN, GROUPED])
def test_weight_memory_counts_matrices_norms_and_embeddings(shape: ModelShape) -> None:
    width, kv_width = shape.heads * shape.head_width, shape.groups * shape.head_width
    matrices = shape.hidden * (2 * width + 2 * kv_width)
    matrices += (3 if shape.gated else 2) * shape.hidden * shape.ffn
    # Two norms of two vectors per layer, and the last one.
    parameters = shape.layers * (matrices + 4 * shape.hidden) + 2 * shape.hidden
    parameters += shape.padded_vocab * shape.hidden * (2 if shape.untied else 1)
    assert weight_and_optimizer_bytes(shape, Footprint()) == pytest.approx(
        18 * parameters, rel=1e-12
    )
    sharded = weight_and_optimizer_bytes(shape, Footprint(sharded=4))
    assert sharded == pytest.approx((6 + 12 / 4) * parameters, rel=1e-12)


def test_memory_of_the_first_stage_of_a_split_model() -> None:
    split = Footprint(
        micro_batch_size=2,
        num_microbatches=8,
        tensor_parallel=4,
        pipeline_parallel=3,
        context_parallel=2,
        sharded=5,
    )
    layers = 2 * 3 * 48**2 * (2 + PLAIN.ffn / 48 + 2 / 48 + 1 / (3 * 48))
    expected = (layers / 3 + 128 * 48) / 4 * (6 + 12 / 5)
    assert weight_and_optimizer_bytes(PLAIN, split) == pytest.approx(expected, rel=1e-12)
    # One matrix on the first stage, whether the last one has another or the same.
    untied = dataclasses.replace(PLAIN, untied=not PLAIN.untied)
    assert weight_and_optimizer_bytes(untied, split) == pytest.approx(expected, rel=1e-12)
    tokens = 40 * 2
    whole = tokens * 48 * (18 + 4 * PLAIN.ffn / 48) * 3 + 3 * (8 + 48) * tokens
    assert selective_activation_bytes(PLAIN, split) == pytest.approx(whole / 8, rel=1e-12)
    few = dataclasses.replace(split, num_microbatches=2)
    assert selective_activation_bytes(PLAIN, few) == pytest.approx(whole / 8 * 2 / 3, rel=1e-12)
    virtual = dataclasses.replace(split, stages_per_process=2)
    larger = whole / 8 * (1 + 2 / 6)
    assert selective_activation_bytes(PLAIN, virtual) == pytest.approx(larger, rel=1e-12)


def test_activation_memory_of_a_worked_example() -> None:
    # s b h = 40*2*48 = 3840; 3840*(18 + 16)*3 + 8*80 + 3840 + 3840*4*(1 + 128/48)
    expected = 3840 * 34 * 3 + 640 + 3840 + 3840 * 4 * (1 + 128 / 48)
    assert selective_activation_bytes(PLAIN, TWO) == pytest.approx(expected, rel=1e-12)


def test_the_memory_line() -> None:
    line = format_theoretical_memory(PLAIN, TWO, selective_recompute=False)
    megabytes = weight_and_optimizer_bytes(PLAIN, TWO) / 2**20
    assert line == f"Theoretical memory footprints: weight and optimizer={megabytes:.2f} MB"
    both = format_theoretical_memory(PLAIN, TWO, selective_recompute=True)
    assert both.startswith(line + ", activation=")
    assert ", total=" in both


def test_shape_of_a_configuration() -> None:
    model = ModelConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=8,
        group_query_attention=True,
        num_query_groups=2,
        swiglu=True,
        position_embedding_type="rope",
        max_position_embeddings=32,
    ).resolved()
    shape = ModelShape.of(model, padded_vocab=256, seq_length=32)
    assert (shape.groups, shape.head_width, shape.ffn) == (2, 8, 128)
    ungrouped = dataclasses.replace(model, group_query_attention=False)
    assert ModelShape.of(ungrouped, padded_vocab=256, seq_length=32).groups == 8

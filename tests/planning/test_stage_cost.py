"""The cost of a stage against formulas of the literature, and against real memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.parallel.tensor import apply_tensor_parallel
from megacore.parallel.weight_grad import WeightGradStore
from megacore.planning.measure import Meter
from megacore.planning.stage_cost import StageCost, StageShape, measure_stage
from megacore.planning.traffic import SimulatedGroup, Traffic

BATCH, LENGTH, HIDDEN, HEADS, ROWS = 3, 256, 512, 8, 1024
TENSOR = 4
TOKENS = BATCH * LENGTH * HIDDEN

FULL = RecomputeConfig(
    recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
)


def cost(
    num_layers: int,
    *,
    tensor: int = 1,
    sequence: bool = False,
    recompute: RecomputeConfig | None = None,
    store: WeightGradStore | None = None,
    dtype: torch.dtype = torch.bfloat16,
    ends: bool = False,
    **changes: Any,
) -> StageCost:
    """Of a stage of layers, alone or between embedding and output."""
    settings = {
        "num_layers": num_layers,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    config = ModelConfig(**{**settings, **changes})
    model = GPTModel(
        config, padded_vocab_size=ROWS, dtype=dtype, device="meta", recompute=recompute
    )
    if not ends:
        model.embedding = None
        model.output_layer = None
        model.decoder.final_layernorm = None
    traffic = Traffic()
    group = SimulatedGroup("tp", tuple(range(tensor)), 0, traffic=traffic)
    apply_tensor_parallel(model, group, sequence_parallel=sequence, store=store)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    existing = [x for p in model.parameters() for x in (p, p.grad) if x is not None]
    shape = StageShape(
        batch_size=BATCH, length=LENGTH, hidden_length=LENGTH // (tensor if sequence else 1)
    )
    return measure_stage(model, shape, existing=existing, traffic=traffic, store=store)


def per_layer(**options: Any) -> float:
    """Activation bytes that a further layer adds, per hidden element of the batch."""
    more, less = cost(3, **options), cost(2, **options)
    return (more.activation_bytes - less.activation_bytes) / TOKENS


def test_activations_are_those_of_the_literature() -> None:
    """Korthikanti et al. (2022), table 2, without the part that flash attention never keeps.

    Statistics of norms and log-sums, which the paper leaves out, are less than 0.1.
    """
    rate = {"hidden_dropout": 0.1, "bias_dropout_fusion": False}
    assert per_layer(**rate) == pytest.approx(34, abs=0.1)
    assert per_layer(tensor=TENSOR, **rate) == pytest.approx(10 + 24 / TENSOR, abs=0.1)
    assert per_layer(tensor=TENSOR, sequence=True, **rate) == pytest.approx(34 / TENSOR, abs=0.1)
    assert per_layer(recompute=FULL, **rate) == pytest.approx(2)
    assert per_layer() == pytest.approx(32, abs=0.1)
    # One byte less for each of two masks, which the fused form does not keep.
    assert per_layer(hidden_dropout=0.1) == pytest.approx(32, abs=0.1)


def test_traffic_of_a_layer() -> None:
    share = TOKENS * 2 * (TENSOR - 1) / TENSOR
    plain = cost(2, tensor=TENSOR)
    for found in (plain.forward_traffic, plain.backward_traffic):
        assert found.sent_bytes == {("tp", "all_reduce"): 2 * 2 * 2 * share}
    split = cost(2, tensor=TENSOR, sequence=True)
    assert split.forward_traffic.sent_bytes == {
        ("tp", "all_gather"): 2 * 2 * share,
        ("tp", "reduce_scatter"): 2 * 2 * share,
    }
    # Backward gathers the inputs of the column products again for their weight gradients.
    assert split.backward_traffic.sent_bytes == {
        ("tp", "all_gather"): 2 * 4 * share,
        ("tp", "reduce_scatter"): 2 * 2 * share,
    }
    assert plain.output_bytes == plain.input_bytes == TOKENS * 2
    assert split.output_bytes == TOKENS * 2 // TENSOR


def test_flops_of_a_layer() -> None:
    """24 B S H^2 of products and 4 B S^2 H of attention, forward; twice that backward."""
    forward = 24 * TOKENS * HIDDEN + 4 * TOKENS * LENGTH
    found = cost(1)
    assert found.forward.flops == forward
    # The attention kernel computes the scores once more in backward.
    assert found.backward.flops == 2 * forward + 2 * TOKENS * LENGTH


def test_deferred_weight_gradients() -> None:
    """What W needs is the input and the output gradient of each product."""
    store = WeightGradStore()
    found, whole = cost(3, store=store), cost(3)
    inputs, outputs = 1 + 1 + 1 + 4, 3 + 1 + 4 + 1
    added = found.deferred_bytes - cost(2, store=store).deferred_bytes
    assert added == 2 * (inputs + outputs) * TOKENS
    assert found.weight_grad.flops == 3 * 24 * TOKENS * HIDDEN
    assert found.backward.flops + found.weight_grad.flops == whole.backward.flops
    assert len(store) == 0
    assert found.weight_grad.kept_bytes == -found.deferred_bytes


def real_kept_bytes(config: ModelConfig, recompute: RecomputeConfig | None) -> int:
    """The same on a CPU, with real tensors."""
    model = GPTModel(config, padded_vocab_size=ROWS, dtype=torch.float32, recompute=recompute)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    weights = torch.ones(BATCH, LENGTH)
    existing = [x for p in model.parameters() for x in (p, p.grad) if x is not None]
    meter = Meter([tokens, weights, *existing])
    with meter, meter.measure() as use:
        loss = (model(tokens, tokens, labels=tokens) * weights).sum()
    loss.backward()
    return use.kept_bytes


@pytest.mark.parametrize("recompute", [None, FULL], ids=["kept", "recomputed"])
def test_meta_tensors_keep_what_real_ones_keep(recompute: RecomputeConfig | None) -> None:
    changes = {
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "swiglu": True,
        "untie_embeddings_and_output_weights": True,
    }
    found = cost(2, dtype=torch.float32, ends=True, recompute=recompute, **changes)
    config = ModelConfig(
        num_layers=2,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        **changes,
    )
    assert found.activation_bytes == pytest.approx(real_kept_bytes(config, recompute), rel=1e-3)


@pytest.mark.parametrize("recompute", [None, FULL], ids=["kept", "recomputed"])
def test_backward_frees_everything(recompute: RecomputeConfig | None) -> None:
    found = cost(2, tensor=TENSOR, sequence=True, ends=True, recompute=recompute)
    assert found.backward.kept_bytes == -found.forward.kept_bytes
    assert found.deferred_bytes == 0
    assert found.transient_bytes > 0
    assert (found.output_bytes, found.input_bytes) == (0, 0)

"""A model split over processes gives the losses and gradients of one process."""

from __future__ import annotations

import dataclasses

import pytest
from tensor_models import ROTARY, Case, Step, gathered, single_step, split_step
from torch import Tensor
from worker_pool import WorkerPools

from megacore.parallel.linear import Overlap

DOCUMENTS = (1, 7, 16, 23, 1, 1, 20, 3)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# Every feature of Gemma 2 and 3 in one model: each of them sees parts of heads, rows or tokens.
GEMMA = ROTARY | {
    "swiglu": False,
    "geglu": True,
    "apply_layernorm_1p": True,
    "untie_embeddings_and_output_weights": False,
    "sandwich_norm": True,
    "scale_embeddings": True,
    "window_size": "4,0",
    "window_attn_skip_freq": "2",
    "rotary_base_local": 500,
    "use_rope_scaling": True,
    "rope_scaling_original_length": 16,
    "softmax_scale": 0.4,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.5,
}

MODELS = {
    "learned": Case(),
    "rope-gqa-swiglu": Case(ROTARY),
    "rope-mha-gelu": Case({"position_embedding_type": "rope", "rotary_interleaved": True}),
    "untied": Case({"untie_embeddings_and_output_weights": True, "squared_relu": True}),
    "tied-swiglu": Case(ROTARY | {"untie_embeddings_and_output_weights": False}),
    "layernorm-1p-qk": Case({"apply_layernorm_1p": True, "qk_layernorm": True}),
    "no-bias": Case({"add_bias_linear": False}),
    "qkv-bias": Case({"add_bias_linear": False, "add_qkv_bias": True}),
    "residual-after-norm": Case({"apply_residual_connection_post_layernorm": True}),
    "fp32-residual": Case({"fp32_residual_connection": True}),
    "gemma": Case(GEMMA),
    "parallel-residual": Case({"parallel_residual": True, "quick_gelu": True}),
    "documents": Case(documents=DOCUMENTS),
    "documents-rope": Case(ROTARY, documents=DOCUMENTS),
    "selective": Case(recompute={"recompute_granularity": "selective"}),
    "uniform": Case(ROTARY, recompute=FULL),
    "block": Case(recompute=FULL | {"recompute_method": "block"}, documents=DOCUMENTS),
    "one-sample": Case(batch_size=1),
    "linear-loss": Case({"cross_entropy_fusion_impl": "linear"}),
    "linear-loss-untied": Case(ROTARY | {"cross_entropy_fusion_impl": "linear"}),
}


def expect_equal(steps: list[Step], losses: Tensor, grads: dict[str, Tensor]) -> None:
    """Every process has the losses, all together the gradients, to 1e-10 of their size."""
    for step in steps:
        assert (step.losses - losses).abs().max() <= 1e-10 * losses.abs().max()
    found = gathered(steps)
    assert found.keys() == grads.keys()
    # The gradient of a bias of the keys is zero but for rounding: compared on the scale of others.
    floor = 1e-4 * max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        size = max(grad.abs().max().item(), floor)
        assert (found[name] - grad).abs().max() <= 1e-10 * size, name


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tp", "sp"])
@pytest.mark.parametrize("name", MODELS)
def test_two_processes(world: WorkerPools, name: str, sequence_parallel: bool) -> None:
    case = dataclasses.replace(MODELS[name], sequence_parallel=sequence_parallel)
    expect_equal(world(2).run(split_step, case), *single_step(case))


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tp", "sp"])
@pytest.mark.parametrize("name", ["learned", "rope-gqa-swiglu", "uniform"])
def test_four_processes(world: WorkerPools, name: str, sequence_parallel: bool) -> None:
    case = dataclasses.replace(MODELS[name], sequence_parallel=sequence_parallel)
    expect_equal(world(4).run(split_step, case), *single_step(case))


OVERLAPS = {
    "nothing": Overlap(reduce_input_grad=False, gather_input=False),
    "gather-pieces": Overlap(gather_pieces=True),
    "scatter-pieces": Overlap(scatter_pieces=True),
    "scatter-grad-pieces": Overlap(scatter_grad_pieces=True),
    "all-pieces": Overlap(gather_pieces=True, scatter_pieces=True, scatter_grad_pieces=True),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_in_every_form(world: WorkerPools, name: str) -> None:
    case = Case(ROTARY, sequence_parallel=True, overlap=OVERLAPS[name])
    reference = single_step(case)
    expect_equal(world(2).run(split_step, case), *reference)
    expect_equal(world(4).run(split_step, case), *reference)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["plain", "documents"])
@pytest.mark.parametrize("recompute", ["uniform", "block"])
def test_saved_activations_in_slices(
    world: WorkerPools, recompute: str, documents: tuple[int, ...] | None
) -> None:
    method = {"recompute_method": recompute}
    case = Case(ROTARY, recompute=FULL | method, documents=documents, slices=True)
    expect_equal(world(2).run(split_step, case), *single_step(case))

"""Models built as those of the Hugging Face families, split over two processes."""

from __future__ import annotations

from typing import Any

from tensor_models import Case, Step, single_step, split_step
from test_tensor_equality import expect_equal
from worker_pool import WorkerPools

from megacore.parallel.groups import Group

GROUPED = {"group_query_attention": True, "num_query_groups": 2}
LLAMA: dict[str, Any] = GROUPED | {
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}
LONGROPE = {
    "rope_scaling_type": "longrope",
    "rope_scaling_original_length": 20,
    "rope_scaling_short_factors": (1.0, 1.5, 2.0),
    "rope_scaling_long_factors": (1.5, 2.5, 4.0),
    "rotary_percent": 0.43,
}
YARN = {"rope_scaling_type": "yarn", "rope_scaling_original_length": 8, "rope_scaling_factor": 3.0}
GEMMA = LLAMA | {
    "swiglu": False,
    "geglu": True,
    "openai_gelu": True,
    "apply_layernorm_1p": True,
    "scale_embeddings": True,
    "untie_embeddings_and_output_weights": False,
}
GEMMA2 = GEMMA | {
    "sandwich_norm": True,
    "softmax_scale": 0.3,
    "window_size": "6,0",
    "window_attn_skip_freq": "2",
    "final_logit_softcapping": 3.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"openai_gelu": True},
    "llama": LLAMA | {"use_rope_scaling": True, "rope_scaling_original_length": 16},
    "mistral": LLAMA | {"window_size": "4,0"},
    "qwen2": LLAMA | YARN | {"add_qkv_bias": True},
    "qwen3": LLAMA | {"qk_layernorm": True},
    "gemma": GEMMA,
    "gemma2": GEMMA2 | {"attn_logit_softcapping": 2.0},
    "gemma3": GEMMA2 | {"qk_layernorm": True, "rotary_base_local": 100},
    "phi3": LLAMA | LONGROPE,
    "gpt_neox": {
        "position_embedding_type": "rope",
        "rotary_percent": 0.3,
        "parallel_residual": True,
        "bias_gelu_fusion": False,
        "untie_embeddings_and_output_weights": True,
    },
}
CASES = {
    (name, parallel): Case(model, sequence_parallel=parallel)
    for name, model in FAMILIES.items()
    for parallel in (False, True)
}


def all_steps(group: Group) -> dict[tuple[str, bool], Step]:
    """A step of every family, without and with sequence parallelism."""
    return {key: split_step(group, case) for key, case in CASES.items()}


def test_every_family_on_two_processes_equals_one(world: WorkerPools) -> None:
    steps = world(2).run(all_steps)
    for key, case in CASES.items():
        expect_equal([step[key] for step in steps], *single_step(case))

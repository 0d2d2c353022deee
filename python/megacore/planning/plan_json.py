"""A plan for programs: seconds, bytes, tokens per second, TFLOP/s of one process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megacore.planning.estimates import StepEstimate
from megacore.planning.plan_inputs import PlanInputs
from megacore.planning.plan_run import training_flags
from megacore.planning.plan_search import PlanResult


def plan_json(inputs: PlanInputs, result: PlanResult) -> dict[str, Any]:
    """What `plan_lines` says and more.

    Args:
        inputs: What was asked.
        result: What was found.
    """
    return {
        "model": {**asdict(inputs.model), "num_parameters": inputs.model.num_parameters()},
        "hardware": asdict(inputs.profile),
        "gpus": inputs.constraints.gpus,
        "global_batch": inputs.constraints.global_batch,
        "fixed": inputs.pinned,
        "considered": result.considered,
        "legal": result.legal,
        "seconds": result.seconds,
        "plans": [estimate_json(inputs, plan) for plan in result.plans],
        "rejected": [
            {
                "reason": one.reason,
                "count": one.count,
                "example": None if one.example is None else asdict(one.example),
            }
            for one in result.rejected
        ],
        "losers": [
            {
                "axis": one.axis,
                "value": one.value,
                "step_s": one.step_s,
                "why": one.why,
                "layout": asdict(one.layout),
            }
            for one in result.losers
        ],
    }


def estimate_json(inputs: PlanInputs, plan: StepEstimate) -> dict[str, Any]:
    """One plan, with the flags that run it."""
    return {
        "layout": asdict(plan.layout),
        "step_s": plan.step_s,
        "tokens_per_s": plan.tokens_per_s,
        "tflops_per_gpu": plan.tflops_per_gpu,
        "mfu_full": plan.mfu_full,
        "mfu_causal": plan.mfu_causal,
        "hfu": plan.hfu,
        "bubble_fraction": plan.bubble_fraction,
        "num_microbatches": plan.num_microbatches,
        "breakdown_s": dict(plan.breakdown),
        "hidden_s": dict(plan.hidden),
        "memory_bytes": plan.memory_bytes,
        "memory": dict(plan.memory),
        "memory_by_pipeline_rank": list(plan.memory_by_rank),
        "volume_bytes": dict(plan.volume),
        "ops": [asdict(op) for op in plan.ops],
        "flags": training_flags(inputs.base, inputs.model, plan.layout),
    }

"""The time, the memory and the traffic of one step of a run in a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megacore._C import planner as core
from megacore.errors import UsageError
from megacore.planning.hardware import HardwareProfile
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """One kind of operation in one step of the busiest rank.

    Attributes:
        category: "matmul", "attention" or "memory_bound".
        forward_s: Seconds of all its forward passes.
        backward_s: Seconds of all its backward passes, recompute aside.
        count: Micro-batches times layers that have it.
    """

    name: str
    category: str
    forward_s: float
    backward_s: float
    count: int


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """What one step takes.

    Attributes:
        step_s: Seconds.
        breakdown: What the busiest rank spends them on; the values add up to `step_s`.
        hidden: Axis -> seconds of communication behind compute.
        memory: Kind -> bytes on the fullest rank at its peak.
        memory_by_rank: Bytes of each pipeline rank.
        volume: Axis -> bytes that the busiest process sends.
        volume_by_rank: The same of each pipeline rank.
        tflops_per_gpu: Operations of the model (attention in full) per second, 1e12.
        mfu_full: Share of the peak, attention counted in full.
        mfu_causal: Share of the peak, attention counted below the diagonal.
        hfu: Share of the peak with the operations of recompute.
        bubble_fraction: Share of the step in which the busiest rank waits for the pipeline.
    """

    layout: Layout
    step_s: float
    breakdown: Mapping[str, float]
    hidden: Mapping[str, float]
    memory: Mapping[str, float]
    memory_by_rank: tuple[float, ...]
    volume: Mapping[str, float]
    volume_by_rank: tuple[Mapping[str, float], ...]
    num_microbatches: int
    tokens_per_s: float
    tflops_per_gpu: float
    mfu_full: float
    mfu_causal: float
    hfu: float
    bubble_fraction: float
    busiest_rank: int
    model: PlanModel = field(repr=False)
    profile: HardwareProfile = field(repr=False)
    global_batch: int

    @property
    def memory_bytes(self) -> float:
        """Of the fullest rank at its peak."""
        return sum(self.memory.values())

    @property
    def ops(self) -> tuple[OpCost, ...]:
        """The operations of the busiest rank."""
        return _ops(self)

    def timeline(self) -> Any:
        """The pipeline as it was simulated: `megacore._C.pipeline.Simulation`, or None."""
        if self.layout.pp == 1:
            return None
        return core.simulate_pipeline(
            self.model.to_core(),
            self.layout.to_core(),
            self.profile.to_core(self.model.dtype),
            self.global_batch,
        )


def estimate(
    layout: Layout, model: PlanModel, profile: HardwareProfile, global_batch: int
) -> StepEstimate:
    """Estimates a step.

    Args:
        layout: Where it runs.
        model: What is trained.
        profile: The hardware.
        global_batch: Sequences.

    Raises:
        UsageError: The layout cannot be run; the message says why.
    """
    try:
        found = core.estimate(
            model.to_core(), layout.to_core(), profile.to_core(model.dtype), global_batch
        )
    except ValueError as error:
        raise UsageError(f"layout: {error}") from error
    return from_core(found, layout, model, profile, global_batch)


def from_core(
    found: Any, layout: Layout, model: PlanModel, profile: HardwareProfile, global_batch: int
) -> StepEstimate:
    """The estimate that the C++ core made."""
    parts, hidden = found.breakdown, found.hidden
    peak = profile.peak_flops[model.dtype] * layout.world_size * found.step_s
    full, causal = found.training_flops_full, found.training_flops_causal
    length = model.seq_length + model.decoder_seq_length
    volumes = tuple(
        {"tp": v.tensor, "cp": v.context, "pp": v.pipeline, "dp": v.data} for v in found.volume
    )
    return StepEstimate(
        layout=layout,
        step_s=found.step_s,
        breakdown={
            "matmul": parts.matmul,
            "attention": parts.attention,
            "memory_bound": parts.memory_bound,
            "launch": parts.launch,
            "recompute": parts.recompute,
            "tp_exposed": parts.tensor,
            "cp_exposed": parts.context,
            "pp_exposed": parts.pipeline,
            "dp_exposed": parts.data,
            "bubble": parts.bubble,
            "optimizer": parts.optimizer,
            "other": parts.other,
        },
        hidden={
            "tp": hidden.tensor,
            "cp": hidden.context,
            "pp": hidden.pipeline,
            "dp": hidden.data,
        },
        memory=_memory(found.memory[found.fullest_rank]),
        memory_by_rank=tuple(rank.total() for rank in found.memory),
        volume=volumes[found.busiest_rank],
        volume_by_rank=volumes,
        num_microbatches=found.num_microbatches,
        tokens_per_s=global_batch * length / found.step_s,
        tflops_per_gpu=full / found.step_s / layout.world_size / 1e12,
        mfu_full=full / peak,
        mfu_causal=causal / peak,
        hfu=(full + found.recompute_flops) / peak,
        bubble_fraction=found.bubble_fraction,
        busiest_rank=found.busiest_rank,
        model=model,
        profile=profile,
        global_batch=global_batch,
    )


def _memory(rank: Any) -> dict[str, float]:
    state = rank.state
    return {
        "parameters": state.parameter_bytes,
        "gradients": state.gradient_bytes + state.main_gradient_bytes,
        "main_parameters": state.main_parameter_bytes,
        "optimizer_state": state.optimizer_bytes,
        "activations": rank.activations,
        "transient": rank.transient,
        "allocator": rank.allocator,
        "reserve": rank.reserve,
    }


def _ops(step: StepEstimate) -> tuple[OpCost, ...]:
    model, layout = step.model.to_core(), step.layout.to_core()
    contents = core.stage_contents(layout, model)
    held = [contents[stage] for stage in core.held_stages(layout)[step.busiest_rank]]
    layers = sum(stage.layers for stage in held)
    parts = {
        "layer": step.model.num_layers if step.model.decoder_layers else layers,
        "decoder_layer": step.model.decoder_layers,
        "embedding": sum(stage.has_embedding for stage in held),
        "output": sum(stage.has_output for stage in held),
    }
    listed = core.list_ops(model, layout, step.profile.to_core(step.model.dtype))
    times: dict[tuple[str, str], list[float]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for part, ops in listed:
        count = parts[part] * step.num_microbatches
        for op in ops:
            if count:
                key = (op.name, op.category)
                sums = times.setdefault(key, [0.0, 0.0])
                sums[0] += count * op.forward_s
                sums[1] += count * (op.input_grad_s + op.weight_grad_s)
                counts[key] += count
    return tuple(
        OpCost(
            name=name,
            category=category,
            forward_s=sums[0],
            backward_s=sums[1],
            count=counts[name, category],
        )
        for (name, category), sums in times.items()
    )

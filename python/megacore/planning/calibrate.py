"""A hardware profile measured on this machine.

First single operations: products of several shapes, attention, memory, starting an operation, and
communication between the processes. They are not the whole of a step: caches are warmer or colder,
the loop and autograd add their part. So then a few small models train, and each group of constants
is scaled so that the estimates of their steps are right (`calibrate_fit.fit_scales`).

All processes measure at the same time, as those of a run compute: on a machine whose processes
share memory channels or cores each is slower than one alone.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import torch

from megacore.parallel.groups import Group
from megacore.planning.calibrate_fit import fit_scales
from megacore.planning.calibrate_links import measure_links
from megacore.planning.calibrate_ops import (
    DTYPES,
    Clock,
    measure_attention,
    measure_matmul,
    measure_memory,
    measure_overhead,
    measure_weight_grad,
)
from megacore.planning.calibrate_steps import (
    SmallModel,
    small_models,
    small_run,
    step_seconds,
    vocabulary,
)
from megacore.planning.calibrate_workers import run_together
from megacore.planning.estimates import estimate
from megacore.planning.hardware import LINKS, HardwareProfile, Link
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel

# Groups of constants -> the parts of an estimate that they make.
_GROUPS = {
    "matmul": ("matmul",),
    "attention": ("attention",),
    "memory": ("memory_bound", "optimizer"),
    "launch": ("launch",),
    "step": ("other",),
}
_STEPS_S = 2.0  # about how long each small model trains
_FIT_ROUNDS = 4
_FIRST_STEP_S = 2e-3  # of step_overhead_s, before it is fitted
Say = Callable[[str], None]


def calibrate(
    *,
    processes: int,
    threads: int,
    dtypes: Sequence[str],
    budget_s: float = 0.25,
    name: str = "calibrated",
    link: str = "ethernet-10g",
    say: Say = lambda text: None,
) -> HardwareProfile:
    """Measures this machine, for minutes.

    Args:
        processes: That measure at the same time; each has a GPU where there are as many.
        threads: Of each.
        dtypes: "fp32", "bf16", "fp16"; the first one is that of the steps that are timed.
        budget_s: About how long each single operation is repeated.
        name: Of the profile.
        link: Network between machines, of which nothing is measured here.
        say: Gets a line before each part.

    Raises:
        CommunicationError: A process failed.
    """
    options = {"dtypes": list(dtypes), "budget_s": budget_s}
    say(f"single operations and links, {processes} processes with {threads} threads each")
    answers = run_together(_measure_ops, options, processes=processes, threads=threads)
    rough = _rough_profile(answers, dtypes, name=name, link=link)
    say("steps of small models")
    timed = run_together(_measure_steps, options, processes=processes, threads=threads)
    seconds = [
        statistics.median(answer["steps"][index] for answer in timed)
        for index in range(len(timed[0]["steps"]))
    ]
    models = small_models(torch.device(answers[0]["device"]))
    return fitted_profile(rough, models, seconds, dtypes[0])


def _measure_ops(group: Group, device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """Of one process; see `run_together`."""
    clock = Clock(device, options["budget_s"])
    found: dict[str, Any] = {"device": device.type, "memory_bytes": _memory_bytes(device)}
    for name in options["dtypes"]:
        dtype = DTYPES[name]
        group.barrier()
        matmul = measure_matmul(clock, dtype)
        forward, backward = measure_attention(clock, dtype)
        found[name] = {
            "rate": matmul.rate,
            "half_k": matmul.half_k,
            "best": matmul.best,
            "weight_grad": measure_weight_grad(clock, dtype),
            "attention_forward": forward,
            "attention_backward": backward,
        }
    group.barrier()
    found["memory_rate"] = measure_memory(clock)
    found["overhead"] = measure_overhead(clock)
    if group.size > 1:
        link = measure_links(group, device)
        found["link"] = {"bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}
    return found


def _measure_steps(group: Group, device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """Of one process; see `run_together`."""
    times = []
    for model in small_models(device):
        group.barrier()
        times.append(step_seconds(model, options["dtypes"][0], budget_s=_STEPS_S))
    return {"steps": times}


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _rough_profile(
    answers: Sequence[dict[str, Any]], dtypes: Sequence[str], *, name: str, link: str
) -> HardwareProfile:
    """The profile of the single operations, medians over the processes."""

    def middle(read: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(read(answer) for answer in answers)

    main, count = dtypes[0], len(answers)
    is_gpu = answers[0]["device"] == "cuda"
    peak = middle(lambda a: a[main]["best"])
    rate = middle(lambda a: a[main]["rate"])
    efficiency = min(1.0, rate / peak)
    # The share of the peak is that of the first dtype; the peaks of the others are such that
    # large products of theirs take what was measured.
    peaks = {dtype: middle(lambda a, d=dtype: a[d]["rate"]) / efficiency for dtype in dtypes}  # type: ignore[misc]
    memory = middle(lambda a: a["memory_bytes"]) / (1 if is_gpu else count)
    inside = Link(
        name="local",
        level=0,
        bytes_per_s=middle(lambda a: a["link"]["bytes_per_s"]) if count > 1 else 1e9,
        latency_s=middle(lambda a: a["link"]["latency_s"]) if count > 1 else 50e-6,
        source="measured between the processes" if count > 1 else "not measured: one process",
    )
    measured = f"measured {date.today()}, {count} processes at a time, {platform.machine()}"
    constants: dict[str, Any] = {
        "matmul_efficiency": efficiency,
        "matmul_half_k": middle(lambda a: a[main]["half_k"]),
        "weight_grad_efficiency": middle(lambda a: a[main]["weight_grad"]),
        "attention_forward_efficiency": middle(lambda a: a[main]["attention_forward"]) / peak,
        "attention_backward_efficiency": middle(lambda a: a[main]["attention_backward"]) / peak,
        "batched_matmul_efficiency": efficiency,
        "memory_rate": middle(lambda a: a["memory_rate"]),
        "op_overhead_s": middle(lambda a: a["overhead"]),
    }
    sources = dict.fromkeys([*constants, "memory_bytes"], measured)
    sources |= {f"peak_flops.{dtype}": f"{measured}; large products" for dtype in dtypes}
    return HardwareProfile(
        name=name,
        kind="gpu" if is_gpu else "cpu",
        gpus_per_node=count,
        memory_bytes=memory,
        peak_flops=peaks,
        step_overhead_s=_FIRST_STEP_S,
        links=(inside, LINKS[link]),
        sources=sources,
        **constants,
    )


def fitted_profile(
    rough: HardwareProfile, models: Sequence[SmallModel], seconds: Sequence[float], dtype: str
) -> HardwareProfile:
    """The profile with its groups of constants scaled to the steps of small models.

    Args:
        rough: From single operations.
        models: What trained.
        seconds: Of a step of each.
        dtype: In which they trained.
    """
    profile = rough
    for _ in range(_FIT_ROUNDS):
        profile = _scaled(profile, models, seconds, dtype)
    sources = dict(rough.sources)
    note = f"; scaled to steps of {len(models)} small models"
    for constant in (
        "matmul_efficiency",
        "attention_forward_efficiency",
        "attention_backward_efficiency",
        "memory_rate",
        "op_overhead_s",
    ):
        sources[constant] = sources.get(constant, "") + note
    sources["step_overhead_s"] = f"steps of {len(models)} small models"
    return replace(profile, sources=sources)


def _scaled(
    profile: HardwareProfile, models: Sequence[SmallModel], seconds: Sequence[float], dtype: str
) -> HardwareProfile:
    """The profile with each group of constants scaled once.

    A product that waits for memory depends on two of them: so the scales are not final.
    """
    parts = []
    for small in models:
        layout = Layout(micro_batch=small.micro_batch)
        model = PlanModel.of(small_run(small, dtype), vocab_size=vocabulary())
        found = estimate(layout, model, profile, small.micro_batch * small.num_microbatches)
        parts.append(
            {
                group: sum(found.breakdown[name] for name in names)
                for group, names in _GROUPS.items()
            }
        )
    scale = {group: max(factor, 1e-3) for group, factor in fit_scales(parts, seconds).items()}
    return replace(
        profile,
        matmul_efficiency=profile.matmul_efficiency / scale["matmul"],
        attention_forward_efficiency=profile.attention_forward_efficiency / scale["attention"],
        attention_backward_efficiency=profile.attention_backward_efficiency / scale["attention"],
        memory_rate=profile.memory_rate / scale["memory"],
        op_overhead_s=profile.op_overhead_s * scale["launch"],
        step_overhead_s=profile.step_overhead_s * scale["step"],
    )

"""Ways to spread a run over processes, and the flags that ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megacore._C import planner as core
from megacore.planning.model_shape import PlanModel

SHARDINGS = ("no_shard", "optim", "optim_grads", "optim_grads_params")
RECOMPUTES = ("none", "selective", "full")
_CORE_NAMES = {
    "tp": "tensor",
    "pp": "pipeline",
    "cp": "context",
    "dp": "data",
    "sequence_parallel": "sequence_parallel",
    "virtual_stages": "virtual_stages",
    "schedule": "schedule",
    "micro_batch": "micro_batch",
    "overlap_grad_reduce": "overlap_grad_reduce",
    "overlap_param_gather": "overlap_param_gather",
    "tp_comm_overlap": "tp_comm_overlap",
    "overlap_p2p": "overlap_p2p",
    "scatter_transfers": "scatter_transfers",
    "first_layers": "first_layers",
    "last_layers": "last_layers",
    "order": "order",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread.

    Attributes:
        ep: Expert parallelism; 1 for dense models.
        virtual_stages: Pipeline stages on each rank.
        schedule: Of the pipeline; "none" without one.
        micro_batch: Sequences that a replica computes at once.
        sharding: What the replicas split: one of `SHARDINGS`.
        recompute: One of `RECOMPUTES`; "full" is every layer.
        scatter_transfers: Each tensor-parallel rank sends a part of what goes to the next stage,
            without sequence parallelism too. Published runs do; megacore does not.
        first_layers: Of the first stage, when it differs; -1: it does not.
        last_layers: Of the last stage, when it differs; -1: it does not.
        order: Axes from the fastest varying to the slowest.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    ep: int = 1
    sequence_parallel: bool = False
    virtual_stages: int = 1
    schedule: str = "none"
    micro_batch: int = 1
    sharding: str = "no_shard"
    recompute: str = "none"
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    tp_comm_overlap: bool = False
    overlap_p2p: bool = True
    scatter_transfers: bool = False
    first_layers: int = -1
    last_layers: int = -1
    order: str = "tp-cp-ep-dp-pp"

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.tp * self.pp * self.cp * self.dp

    def num_microbatches(self, global_batch: int) -> int:
        """Micro-batches of one replica per step."""
        return global_batch // (self.micro_batch * self.dp)

    def to_core(self) -> Any:
        """The same for the C++ core."""
        layout = core.Layout()
        for name, core_name in _CORE_NAMES.items():
            setattr(layout, core_name, getattr(self, name))
        layout.sharding = getattr(core.Sharding, self.sharding)
        layout.recompute = getattr(core.Recompute, self.recompute)
        return layout

    @classmethod
    def from_core(cls, layout: Any) -> Layout:
        """The layout that the C++ core found."""
        values = {name: getattr(layout, core_name) for name, core_name in _CORE_NAMES.items()}
        return cls(**values, sharding=layout.sharding.name, recompute=layout.recompute.name)

    def flags(self, model: PlanModel) -> list[str]:
        """Words of a command line that ask for it.

        Args:
            model: What is trained: virtual stages are asked for by their layers.
        """
        words = ["--micro-batch-size", str(self.micro_batch)]
        for flag, size in (
            ("--tensor-model-parallel-size", self.tp),
            ("--pipeline-model-parallel-size", self.pp),
            ("--context-parallel-size", self.cp),
        ):
            if size > 1:
                words += [flag, str(size)]
        if self.schedule == "interleaved":
            layers = model.num_layers // (self.pp * self.virtual_stages)
            words += ["--num-layers-per-virtual-pipeline-stage", str(layers)]
        elif self.pp > 1 and self.schedule != "1f1b":
            words += ["--pipeline-schedule", self.schedule]
        if self.first_layers >= 0:
            words += ["--decoder-first-pipeline-num-layers", str(self.first_layers)]
        if self.last_layers >= 0:
            words += ["--decoder-last-pipeline-num-layers", str(self.last_layers)]
        if self.sharding == "optim":
            words.append("--use-distributed-optimizer")
        elif self.sharding != "no_shard":
            words += ["--data-parallel-sharding-strategy", self.sharding]
        if self.recompute == "selective":
            words += ["--recompute-granularity", "selective"]
        elif self.recompute == "full":
            words += ["--recompute-granularity", "full", "--recompute-method", "uniform"]
            words += ["--recompute-num-layers", "1"]
        for flag, is_on in (
            ("--sequence-parallel", self.sequence_parallel),
            ("--tp-comm-overlap", self.tp_comm_overlap),
            ("--overlap-grad-reduce", self.overlap_grad_reduce),
            ("--overlap-param-gather", self.overlap_param_gather),
            ("--no-overlap-p2p-communication", not self.overlap_p2p and self.pp > 1),
        ):
            if is_on:
                words.append(flag)
        if self.order != "tp-cp-ep-dp-pp":
            words += ["--order", self.order]
        return words


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a search may choose.

    Attributes:
        gpus: Processes.
        global_batch: Sequences of a step.
        memory_bytes: That a process may use, the reserve included; None: all it has.
        choices: Field of `Layout` -> the values to try; the others are searched.
        top: Plans to return.
    """

    gpus: int
    global_batch: int
    memory_bytes: float | None = None
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    top: int = 10

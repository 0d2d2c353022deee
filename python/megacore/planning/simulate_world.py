"""A run of many processes, checked and measured in one: model, buffers, schedule, communication.

Everything is built as the run would build it, on meta tensors and with groups whose other members
do not exist; one micro-batch goes through every kind of pipeline stage. So what is refused here is
what the run would refuse, and memory and communication are those of the code that trains:

* memory: tensors of one process of a GPU run, at the peak of the pipeline schedule, without what
  the allocator, CUDA and NCCL add;
* communication: bytes that one process sends per step, by ring algorithms, without the few numbers
  that are exchanged for norms and losses;
* the bubble: from the floating-point operations of each stage, as if communication took no time.

Tensor, context and data parallel ranks are alike, so one rank is taken of each kind of pipeline
rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from megacore._C import pipeline as core
from megacore.data.tokenizers import build_tokenizer, padded_vocab_size
from megacore.models.gpt import GPTModel
from megacore.optim import MicrobatchCalculator
from megacore.optim.memory import MemoryReport
from megacore.parallel.apply import stage_layers
from megacore.parallel.grid import PipelineEnds, make_grid
from megacore.parallel.pipeline_plan import WHOLE_MODEL, StagePlan, run_schedule, stage_plan
from megacore.parallel.random_streams import tensor_stream
from megacore.planning.stage_cost import StageCost, StageShape, measure_stage
from megacore.planning.traffic import Traffic, simulated_groups
from megacore.training.learner import build_learner, build_model, parameter_dtype
from megacore.training.run_config import RunConfig

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """One kind of process.

    Attributes:
        pipeline_ranks: Those that are alike, along the pipeline.
        stages: In words, what each of them holds.
        state: Parameters, gradients and optimizer state.
        activation_bytes: Activations at the peak of the schedule.
        transient_bytes: What the largest pass uses for a while on top of that.
        traffic: What a process sends in one step.
        busy: Share of the step in which it computes.
    """

    pipeline_ranks: tuple[int, ...]
    stages: tuple[str, ...]
    state: MemoryReport
    activation_bytes: int
    transient_bytes: int
    traffic: Traffic
    busy: float

    @property
    def total_bytes(self) -> int:
        """Memory at the peak."""
        return self.state.total + self.activation_bytes + self.transient_bytes


@dataclass(frozen=True, kw_only=True)
class WorldReport:
    """A whole run.

    Attributes:
        degrees: Axis -> number of parts.
        order: Axes from the fastest varying to the slowest.
        schedule: Name of the pipeline schedule; "none" without a pipeline.
        num_stages: Stages of the model.
        num_microbatches: Micro-batches of one replica per step, after any ramp-up.
        num_parameters: Of the whole model.
        bubble: Share of the processes' time that is not compute.
        ranks: The kinds of processes.
    """

    degrees: dict[str, int]
    order: str
    schedule: str
    num_stages: int
    num_microbatches: int
    num_parameters: int
    bubble: float
    ranks: tuple[RankReport, ...]


class _Shape(NamedTuple):
    """What a stage holds, as far as it costs."""

    num_layers: int
    has_embedding: bool
    has_output: bool

    def __str__(self) -> str:
        parts = ["embedding"] if self.has_embedding else []
        if self.num_layers:
            parts.append(f"{self.num_layers} layer{'s' if self.num_layers != 1 else ''}")
        return " + ".join([*parts, "output"] if self.has_output else parts)


@dataclass(frozen=True)
class _Kind:
    """Pipeline ranks that are alike."""

    ranks: tuple[int, ...]
    plan: StagePlan
    shapes: tuple[_Shape, ...]


@dataclass(frozen=True)
class _Built:
    """A pipeline rank of a kind, measured."""

    kind: _Kind
    state: MemoryReport
    costs: Mapping[_Shape, StageCost]
    step_traffic: Traffic


def simulate_world(run: RunConfig) -> WorldReport:
    """Checks and measures a run.

    Args:
        run: Resolved settings, for the number of processes to simulate.

    Raises:
        MegacoreError: What the run would be refused for.
    """
    # Attention dropout keeps no memory on a GPU, and its masks cannot be drawn without values.
    run = replace(run, model=replace(run.model, attention_dropout=0.0))
    parallel = run.parallel
    batch_sizes = MicrobatchCalculator(run.batch, parallel.data_parallel_size)
    num_microbatches = batch_sizes.max_global_batch_size // (
        int(run.batch.micro_batch_size or 1) * parallel.data_parallel_size
    )
    rows = _vocabulary_rows(run)
    schedule = None
    if parallel.pipeline_model_parallel_size > 1:
        schedule = run_schedule(parallel, run.model.num_layers or 0, num_microbatches)
    built = [
        _build(run, kind, rows, batch_sizes, _ends(schedule)) for kind in _kinds(run, schedule)
    ]
    costs = {shape: cost for part in built for shape, cost in part.costs.items()}
    simulation = None
    if schedule is not None:
        simulation = _simulation(schedule, [costs[shape] for shape in _shapes(run, schedule)])
    grid = make_grid(parallel)
    return WorldReport(
        degrees={axis: grid.degree(axis) for axis in ("tp", "cp", "dp", "pp")},
        order=parallel.axis_order,
        schedule="none" if schedule is None else schedule.name,
        num_stages=1 if schedule is None else schedule.placement.num_stages,
        num_microbatches=num_microbatches,
        num_parameters=_num_parameters(run, rows),
        bubble=0.0 if simulation is None else simulation.bubble_fraction,
        ranks=tuple(_rank_report(part, schedule, simulation, num_microbatches) for part in built),
    )


def _vocabulary_rows(run: RunConfig) -> int:
    """Rows of the word embedding."""
    return padded_vocab_size(
        build_tokenizer(run.tokenizer).vocab_size,
        make_divisible_by=run.model.make_vocab_size_divisible_by,
        tensor_parallel_size=run.parallel.tensor_model_parallel_size,
    )


def _num_parameters(run: RunConfig, rows: int) -> int:
    model = GPTModel(run.model, padded_vocab_size=rows, device=META)
    return sum(parameter.numel() for parameter in model.parameters())


def _shapes(run: RunConfig, schedule: Any) -> list[_Shape]:
    """The stages of the schedule, as far as they cost."""
    plan = WHOLE_MODEL
    if schedule is not None:
        everything = schedule.placement.num_stages
        plan = StagePlan(num_stages=everything, local={i: i for i in range(everything)})
    layers = stage_layers(run.model, run.parallel, plan).values()
    return [_Shape(part.last - part.first, part.has_embedding, part.has_output) for part in layers]


def _kinds(run: RunConfig, schedule: Any) -> list[_Kind]:
    """The pipeline ranks, those with like stages together."""
    if schedule is None:
        return [_Kind((0,), WHOLE_MODEL, tuple(_shapes(run, None)))]
    shapes, placement = _shapes(run, schedule), schedule.placement
    found: dict[tuple[_Shape, ...], list[int]] = {}
    for rank in range(placement.num_ranks):
        held = tuple(shapes[stage] for stage in placement.stages_of(rank))
        found.setdefault(held, []).append(rank)
    return [
        _Kind(tuple(ranks), stage_plan(schedule, ranks[0]), held) for held, ranks in found.items()
    ]


def _ends(schedule: Any) -> PipelineEnds:
    """Where the schedule begins and ends."""
    if schedule is None:
        return PipelineEnds((0,), (0,))
    placement = schedule.placement
    stages = range(placement.num_stages)
    return PipelineEnds(
        tuple(placement.rank_of(stage) for stage in stages if placement.is_first(stage)),
        tuple(placement.rank_of(stage) for stage in stages if placement.is_last(stage)),
    )


def _build(
    run: RunConfig,
    kind: _Kind,
    rows: int,
    batch_sizes: MicrobatchCalculator,
    ends: PipelineEnds,
) -> _Built:
    """Builds the model and the optimizer of a process, and measures its stages."""
    parallel, traffic = run.parallel, Traffic()
    groups = simulated_groups(
        parallel,
        make_grid(parallel).group("pp", 0)[kind.ranks[0]],
        traffic=traffic,
        ends=ends,
    )
    stream = None
    if groups.tp.size > 1:
        stream = tensor_stream(run.training.seed, groups.tp.rank, torch.device("cpu"))
    model = build_model(
        run,
        groups,
        plan=kind.plan,
        padded_vocab_size=rows,
        device=META,
        dtype=parameter_dtype(run.precision),
        stream=stream,
    )
    model.train()
    optimizer = build_learner(run, model, batch_sizes, groups).optimizer
    existing = [
        tensor
        for bucket in optimizer.buckets
        for tensor in (bucket.model, bucket.grad, bucket.main, bucket.main_grad)
    ]
    # Sharded parameters are then gathered by the forward that is measured.
    optimizer.publish_params()
    shape = _stage_shape(run)
    costs: dict[_Shape, StageCost] = {}
    for kept, stage in zip(kind.shapes, model.stages.values(), strict=True):
        if kept not in costs:
            assert isinstance(stage, GPTModel)
            costs[kept] = measure_stage(
                stage, shape, existing=existing, traffic=traffic, store=model.store
            )
    traffic.take()
    optimizer.finish_gradients()
    optimizer.publish_params()
    return _Built(kind, optimizer.memory_report(), costs, traffic.take())


def _stage_shape(run: RunConfig) -> StageShape:
    parallel = run.parallel
    length = int(run.data.length or 1) // parallel.context_parallel_size
    split = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return StageShape(
        batch_size=int(run.batch.micro_batch_size or 1),
        length=length,
        hidden_length=length // split,
    )


def _simulation(schedule: Any, costs: Sequence[StageCost]) -> Any:
    """The schedule as if the processes did one operation per picosecond."""
    unit = 1e-6
    return core.simulate(
        schedule,
        core.Costs(
            forward_us=[unit * cost.forward.flops for cost in costs],
            input_grad_us=[unit * cost.backward.flops for cost in costs],
            weight_grad_us=[unit * cost.weight_grad.flops for cost in costs],
            activation_bytes=[float(cost.activation_bytes) for cost in costs],
            kept_bytes=[float(cost.deferred_bytes) for cost in costs],
        ),
    )


def _rank_report(
    built: _Built, schedule: Any, simulation: Any, num_microbatches: int
) -> RankReport:
    kind, traffic = built.kind, Traffic()
    for shape in kind.shapes:
        cost = built.costs[shape]
        traffic.add_all(cost.forward_traffic, num_microbatches)
        traffic.add_all(cost.backward_traffic, num_microbatches)
    traffic.add_all(built.step_traffic)
    most = max(cost.activation_bytes for cost in built.costs.values())
    busy = 1.0
    if schedule is not None:
        most = max(round(simulation.ranks[rank].peak_bytes) for rank in kind.ranks)
        busy = simulation.ranks[kind.ranks[0]].busy_us / simulation.makespan_us
        by_stage = dict(zip(kind.plan.local, kind.shapes, strict=True))
        for action in schedule.ranks[kind.ranks[0]]:
            if action.kind == core.Kind.SEND_FORWARD:
                traffic.add("pp", "send", built.costs[by_stage[action.stage]].output_bytes)
            elif action.kind == core.Kind.SEND_BACKWARD:
                traffic.add("pp", "send", built.costs[by_stage[action.stage]].input_bytes)
    return RankReport(
        pipeline_ranks=kind.ranks,
        stages=tuple(str(shape) for shape in kind.shapes),
        state=built.state,
        activation_bytes=most,
        transient_bytes=max(cost.transient_bytes for cost in built.costs.values()),
        traffic=traffic,
        busy=busy,
    )

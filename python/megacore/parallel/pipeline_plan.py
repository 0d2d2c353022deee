"""The pipeline schedule of a run, and which stages of the model a process holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacore._C import pipeline as core
from megacore.errors import UsageError
from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import PipelineEnds
from megacore.parallel.groups import Group, ParallelGroups
from megacore.parallel.p2p import Channel, PipelineTransport, TensorSpec, channel_groups
from megacore.parallel.pipeline import PipelineHooks, PipelineRunner, Stage
from megacore.parallel.startup import pair_group
from megacore.parallel.weight_grad import WeightGradStore


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Which stages of the model a process holds.

    Attributes:
        num_stages: Stages that the layers are divided into.
        local: Stage of the schedule -> stage of the model, those on this process, in order. The
            two differ only where a schedule runs through the model in more than one chain.
        ends_where_it_begins: One process has the first and the last stage.
        defers_weight_grads: The schedule computes weight gradients in steps of their own.
    """

    num_stages: int = 1
    local: Mapping[int, int]
    ends_where_it_begins: bool = True
    defers_weight_grads: bool = False


WHOLE_MODEL = StagePlan(local={0: 0})


def run_schedule(parallel: ParallelConfig, num_layers: int, num_microbatches: int) -> Any:
    """The schedule that the settings name, with its transfers, checked.

    Args:
        parallel: Resolved settings; more than one pipeline rank.
        num_layers: Layers of the model, which decide how many virtual stages there are.
        num_microbatches: Micro-batches of one replica.

    Returns:
        `megacore._C.pipeline.Schedule`.

    Raises:
        UsageError: The schedule cannot be made for so many micro-batches, or the file does not
            hold a schedule that fits the run.
    """
    num_ranks = parallel.pipeline_model_parallel_size
    try:
        if parallel.pipeline_schedule_file is not None:
            schedule = _from_file(parallel.pipeline_schedule_file)
        else:
            name = parallel.schedule_name
            chunks = parallel.stages_per_rank(num_layers) if name == "interleaved" else 0
            schedule = core.make_schedule(
                name, num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=chunks
            )
        placement = schedule.placement
        found = (placement.num_ranks, placement.num_microbatches)
        if found != (num_ranks, num_microbatches):
            raise UsageError(
                f"schedule {schedule.name} is for {found[0]} ranks and {found[1]} micro-batches, "
                f"the run has {num_ranks} and {num_microbatches}"
            )
        # Without overlap each transfer is waited for before the next step computes.
        prefetch = 1 if parallel.overlap_p2p_comm else 0
        schedule = core.add_communication(schedule, prefetch=prefetch)
        core.validate(schedule)
    except ValueError as error:
        raise UsageError(f"pipeline schedule: {error}") from error
    return schedule


def _from_file(path: str) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--pipeline-schedule-file {path}: {error}") from error
    return core.parse_csv(text, path)


def ends_of_file(parallel: ParallelConfig) -> PipelineEnds | None:
    """Where a schedule that is read from a file begins and ends; None for a named one.

    Args:
        parallel: Resolved settings.

    Raises:
        UsageError: The file does not hold a schedule.
    """
    if parallel.pipeline_schedule_file is None or parallel.pipeline_model_parallel_size == 1:
        return None
    try:
        chains = _from_file(parallel.pipeline_schedule_file).placement.chains
    except ValueError as error:
        raise UsageError(f"pipeline schedule: {error}") from error
    return PipelineEnds(
        first=tuple(chain[0] for chain in chains), last=tuple(chain[-1] for chain in chains)
    )


def stage_plan(schedule: Any, rank: int) -> StagePlan:
    """The stages of one rank of the pipeline.

    Args:
        schedule: As `run_schedule` gave, for any number of micro-batches.
        rank: Rank of the pipeline.

    Raises:
        UsageError: The schedule runs through more than one copy of the model.
    """
    placement = schedule.placement
    if len(placement.chains) > 1:
        raise UsageError(
            f"schedule {schedule.name} keeps {len(placement.chains)} copies of each stage, whose "
            "gradients would have to be summed: this is not supported; dualpipev has the same "
            "bubble with one copy"
        )
    return StagePlan(
        num_stages=placement.num_stages,
        local={stage: stage for stage in placement.stages_of(rank)},
        ends_where_it_begins=placement.chains[0][0] == placement.chains[0][-1],
        defers_weight_grads=schedule.splits_backward,
    )


class Pipeline:
    """The pipeline of a run: a runner for every number of micro-batches.

    Args:
        parallel: Resolved settings; more than one pipeline rank.
        num_layers: Layers of the model.
        groups: The groups of this process.
        stages: Function of each stage on this process.
        spec: What the tensors between stages look like.
        store: Where weight gradients are left, for schedules that defer them.
        hooks: What else happens.
        own_channels: The transport pairs messages by their order (NCCL), so that each pair of
            neighbours needs connections of its own.
    """

    def __init__(
        self,
        parallel: ParallelConfig,
        num_layers: int,
        *,
        groups: ParallelGroups,
        stages: Mapping[int, Stage],
        spec: TensorSpec,
        store: WeightGradStore | None,
        hooks: PipelineHooks,
        own_channels: bool,
    ) -> None:
        self._parallel = parallel
        self._num_layers = num_layers
        self._groups = groups
        self._stages = dict(stages)
        self._spec = spec
        self._store = store
        self._hooks = hooks
        self._own_channels = own_channels
        self._runners: dict[int, PipelineRunner] = {}
        self._transport: PipelineTransport | None = None

    def runner(self, num_microbatches: int) -> PipelineRunner:
        """The runner for so many micro-batches; the first time, all ranks of the pipeline ask."""
        if num_microbatches not in self._runners:
            schedule = run_schedule(self._parallel, self._num_layers, num_microbatches)
            if self._transport is None:
                self._transport = PipelineTransport(
                    self._groups.pp,
                    schedule.placement.num_stages,
                    self._spec,
                    variable=self._parallel.variable_seq_lengths,
                    channels=self._channels(schedule) if self._own_channels else None,
                )
            self._runners[num_microbatches] = PipelineRunner(
                schedule=schedule,
                rank=self._groups.pp.rank,
                stages=self._stages,
                transport=self._transport,
                store=self._store,
                hooks=self._hooks,
                max_pending_sends=8 if self._parallel.overlap_p2p_comm else 1,
            )
        return self._runners[num_microbatches]

    def _channels(self, schedule: Any) -> dict[Channel, Group]:
        channels: set[Channel] = set()
        for chain in schedule.placement.chains:
            for one, other in itertools.pairwise(chain):
                if one != other:
                    channels |= {(one, other), (other, one)}
        pipeline = self._groups.pp

        def make(name: str, ranks: tuple[int, ...]) -> Group:
            return pair_group(name, ranks, pipeline, self._parallel.timeout)

        return channel_groups(channels, pipeline, make)

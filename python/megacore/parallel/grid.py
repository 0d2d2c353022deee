"""Which ranks of a run form the groups that one process belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from megacore._C import comm
from megacore.parallel.config import V_SCHEDULES, ParallelConfig

# Name of a group -> the axes of the process grid that it spans.
_AXES = {
    "tp": "tp",
    "pp": "pp",
    "dp": "dp",
    "cp": "cp",
    "dp_cp": "dp-cp",
    "ep": "ep",
    "model": "tp-pp",
    "tp_cp": "tp-cp",
}


@dataclass(frozen=True)
class PipelineEnds:
    """Where the pipeline begins and ends.

    Attributes:
        first: Places along the pipeline axis that hold the first stage of a chain.
        last: Those that hold the last stage of one.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]


def make_grid(parallel: ParallelConfig) -> comm.ProcessGrid:
    """The arrangement of the processes of a run.

    Args:
        parallel: Degrees, order and world size.

    Raises:
        ValueError: They do not fit together; the message says which.
    """
    return comm.ProcessGrid(
        parallel.world_size,
        tensor=parallel.tensor_model_parallel_size,
        context=parallel.context_parallel_size,
        pipeline=parallel.pipeline_model_parallel_size,
        expert=parallel.expert_model_parallel_size,
        order=parallel.axis_order,
    )


def pipeline_ends(parallel: ParallelConfig) -> PipelineEnds:
    """Where the named schedule puts the first and the last stage.

    Args:
        parallel: Degrees and schedule; not one that is read from a file.
    """
    last = parallel.pipeline_model_parallel_size - 1
    if parallel.schedule_name in V_SCHEDULES:
        return PipelineEnds((0,), (0,))
    if parallel.schedule_name == "dualpipe":
        return PipelineEnds((0, last), (0, last))
    return PipelineEnds((0,), (last,))


def group_ranks(
    parallel: ParallelConfig, rank: int, ends: PipelineEnds | None = None
) -> dict[str, tuple[int, ...]]:
    """Name of each field of `ParallelGroups` but the world -> the ranks that it consists of.

    Args:
        parallel: Degrees, order and world size.
        rank: Of the process whose groups these are.
        ends: Where the pipeline begins and ends; by default as the named schedule puts it.

    Raises:
        ValueError: The degrees do not fit together.
    """
    grid = make_grid(parallel)
    ends = ends or pipeline_ends(parallel)
    ranks = {name: grid.group(axes, rank) for name, axes in _AXES.items()}
    # Neighbours share an instance of the optimizer, so that gathers stay inside of a machine.
    replicas = ranks["dp_cp"]
    size = len(replicas) // parallel.num_distributed_optimizer_instances
    instance, place = divmod(list(replicas).index(rank), size)
    ranks["shard"] = replicas[instance * size : (instance + 1) * size]
    ranks["replica"] = replicas[place::size]
    ranks["embedding"] = grid.pipeline_group([*ends.first, *ends.last], rank)
    ranks["position_embedding"] = grid.pipeline_group([*ends.first], rank)
    return {name: tuple(members) for name, members in ranks.items()}

"""Groups of torch.distributed inside a pool of worker processes, made once for all tests."""

from __future__ import annotations

import torch

from megacore.parallel.config import ParallelConfig
from megacore.parallel.grid import PipelineEnds, group_ranks
from megacore.parallel.groups import Group

_MADE: dict[tuple[int, ...], torch.distributed.ProcessGroup] = {}


def groups_for(
    parallel: ParallelConfig, world: Group, ends: PipelineEnds | None = None
) -> dict[tuple[int, ...], torch.distributed.ProcessGroup]:
    """All groups that a layout needs, those of other processes too, by their ranks.

    torch.distributed names a new group by how many the process has. In a pool, which sees many
    layouts, the processes must therefore make every group together, or they wait for each other
    under different names.
    """
    process_group = world.process_group
    assert process_group is not None
    _MADE[world.ranks] = process_group
    for rank in range(world.size):
        for ranks in group_ranks(parallel, rank, ends).values():
            if len(ranks) > 1 and ranks not in _MADE:
                _MADE[ranks] = torch.distributed.new_group(list(ranks))
    return _MADE

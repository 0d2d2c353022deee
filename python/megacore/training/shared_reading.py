"""Processes that need the same tensors read each of them once, and hand it to the others."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch import Tensor

from megacore.parallel.groups import Group


def owners(sizes: Sequence[int], group: Group, *, spread: bool = True) -> list[int]:
    """Deals things that all members of a group have out among them, about equally by size.

    Args:
        sizes: Size of each thing, the same everywhere.
        group: Who takes part.
        spread: Deal; otherwise the first member gets everything.

    Returns:
        For each thing which member got it.
    """
    loads = [(0, member) for member in range(group.size if spread else 1)]
    dealt = []
    for size in sizes:
        load, member = loads[0]
        heapq.heapreplace(loads, (load + size, member))
        dealt.append(member)
    return dealt


class SharedReading:
    """Who of a group reads which tensor (`--ckpt-fully-parallel-load`).

    Each byte leaves the file system once, however many processes hold a copy of it, and the
    processes pass it on over their own network, which is faster than most shared disks.

    Args:
        tensors: What this process needs, in the same order and sizes in all of the group.
        group: The processes that need it.
    """

    def __init__(self, tensors: Sequence[Tensor], group: Group) -> None:
        self._tensors = list(tensors)
        self._group = group
        self._owners = owners([tensor.nbytes for tensor in self._tensors], group)

    @property
    def reads(self) -> frozenset[int]:
        """Indices of the tensors that this process reads."""
        own = self._group.rank
        return frozenset(i for i, owner in enumerate(self._owners) if owner == own)

    def hand_round(self) -> None:
        """Gives every tensor to all of the group; each must have been read by its owner.

        Raises:
            CommunicationError: A process of the group is gone.
        """
        for tensor, owner in zip(self._tensors, self._owners, strict=True):
            if tensor.is_contiguous():
                self._group.broadcast(tensor, owner)
                continue
            copy = tensor.contiguous()
            self._group.broadcast(copy, owner)
            tensor.copy_(copy)

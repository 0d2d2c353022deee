"""Small numbers and texts that the processes of a run tell each other between steps.

Every function is called by all members of the group at the same place of the program, and gives
all of them the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megacore.parallel.groups import Group


def summed(values: Sequence[float], group: Group, device: torch.device) -> list[float]:
    """Sum of each value over the members, in float64.

    Args:
        values: Equally many everywhere.
        group: Who takes part.
        device: Where the group's backend wants its tensors.
    """
    return _reduced(values, group, device, "sum")


def largest(values: Sequence[float], group: Group, device: torch.device) -> list[float]:
    """Largest of each value over the members, in float64.

    Args:
        values: Equally many everywhere; not NaN.
        group: Who takes part.
        device: Where the group's backend wants its tensors.
    """
    return _reduced(values, group, device, "max")


def any_of(flag: bool, group: Group, device: torch.device) -> bool:
    """Whether the flag is set on any member.

    Args:
        flag: This process's.
        group: Who takes part.
        device: Where the group's backend wants its tensors.
    """
    return largest([float(flag)], group, device)[0] > 0.0


def gathered(values: Sequence[float], group: Group, device: torch.device) -> list[list[float]]:
    """The values of every member, by its index in the group, in float64.

    Args:
        values: Equally many everywhere.
        group: Who takes part.
        device: Where the group's backend wants its tensors.
    """
    own = torch.tensor([list(values)], dtype=torch.float64, device=device)
    rows: list[list[float]] = _all(own, group).tolist()
    return rows


def gathered_texts(text: str, group: Group, device: torch.device) -> list[str]:
    """The text of every member, by its index in the group.

    Args:
        text: This process's.
        group: Who takes part.
        device: Where the group's backend wants its tensors.
    """
    content = text.encode()
    sizes = [int(row[0]) for row in gathered([len(content)], group, device)]
    padded = bytearray(content.ljust(max(1, *sizes), b"\0"))
    own = torch.frombuffer(padded, dtype=torch.uint8).to(device)[None]
    rows = _all(own, group).cpu().numpy()
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _reduced(
    values: Sequence[float], group: Group, device: torch.device, operation: str
) -> list[float]:
    if group.size == 1:
        return list(values)
    x = torch.tensor(list(values), dtype=torch.float64, device=device)
    group.all_reduce(x, operation)
    result: list[float] = x.tolist()
    return result


def _all(own: Tensor, group: Group) -> Tensor:
    out = own.new_empty((group.size, *own.shape[1:]))
    group.all_gather(out, own)
    return out

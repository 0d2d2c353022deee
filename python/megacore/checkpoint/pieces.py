"""Parts of tensors: what a process of a parallel run has of them.

A process has a part of a parameter (tensor parallelism), and of that part a range of its optimizer
state (sharded optimizer). It stores what it has, and fills what it has from a checkpoint, whatever
the layout of the run that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megacore.parallel.layout import ParamLayout


@dataclass(frozen=True)
class Part:
    """What a process has of one tensor.

    Attributes:
        layout: Which part of the full tensor it is; its name is that of the full tensor.
        data: The part, of shape `layout.local_shape`, or a flat range of it.
        start: First element of the range.
    """

    layout: ParamLayout
    data: Tensor
    start: int = 0


def whole_layout(name: str, shape: tuple[int, ...]) -> ParamLayout:
    """The layout of a tensor that a process has as a whole."""
    return ParamLayout(name=name, full_shape=shape)

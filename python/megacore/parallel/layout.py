"""How a process's tensor is cut from a full parameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Box:
    """A block of a full tensor, and where it lies in the local one.

    Attributes:
        full_offset: First index of the block in the full tensor, per dimension.
        local_offset: First index of the block in the local tensor, per dimension.
        shape: Size of the block, per dimension.
    """

    full_offset: tuple[int, ...]
    local_offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ParamLayout:
    """How tensor parallelism cuts one parameter, and what follows for its gradient.

    Attributes:
        name: Name in the full model: the name in checkpoints, and of the initial values. A copy
            of a parameter (the word embedding that the last stage uses as its output layer) has
            the name of the original.
        full_shape: Shape in the full model.
        shard_dim: The dimension that is cut; None when every process has the whole parameter.
        num_shards: Parts it is cut into.
        shard: The part that this process has.
        fold: The dimension is made of this many equal parts that are each cut alike (2 for the
            gate and value halves of a gated MLP, which a process must both have).
        partial_grad: Each tensor-parallel process computes a part of the gradient (of its tokens
            or heads); the sum over them is the gradient.
        is_copy: Another stage holds the original; the gradients of both are summed, and norms and
            counts take the original only.
    """

    name: str
    full_shape: tuple[int, ...]
    shard_dim: int | None = None
    num_shards: int = 1
    shard: int = 0
    fold: int = 1
    partial_grad: bool = False
    is_copy: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether a process has only a part."""
        return self.shard_dim is not None and self.num_shards > 1

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the local tensor."""
        if self.shard_dim is None:
            return self.full_shape
        shape = list(self.full_shape)
        shape[self.shard_dim] //= self.num_shards
        return tuple(shape)

    def boxes(self) -> list[Box]:
        """The blocks that the local tensor is made of, in order."""
        zeros = (0,) * len(self.full_shape)
        if self.shard_dim is None:
            return [Box(full_offset=zeros, local_offset=zeros, shape=self.full_shape)]
        dim, size = self.shard_dim, self.full_shape[self.shard_dim]
        part = size // self.fold
        width = part // self.num_shards
        return [
            Box(
                full_offset=_replaced(zeros, dim, fold * part + self.shard * width),
                local_offset=_replaced(zeros, dim, fold * width),
                shape=_replaced(self.full_shape, dim, width),
            )
            for fold in range(self.fold)
        ]

    def local(self, full: Tensor) -> Tensor:
        """The local tensor of a full one, as a copy when it is cut.

        Args:
            full: Of shape `full_shape`.
        """
        if self.shard_dim is None:
            return full
        dim = self.shard_dim
        parts = full.unflatten(dim, (self.fold, self.num_shards, -1))
        return parts.select(dim + 1, self.shard).flatten(dim, dim + 1).contiguous()


def copy_boxes(
    full: Tensor, local: Tensor, layout: ParamLayout, *, to_full: bool, rows: int | None = None
) -> None:
    """Copies between a full tensor and a part of it.

    Args:
        full: The full tensor; it may have other numbers of rows than the layout says.
        local: The part, of shape `layout.local_shape`.
        layout: Which part it is.
        to_full: Direction.
        rows: Only these many first rows of the full tensor are copied; None for all.
    """
    for box in layout.boxes():
        shape = list(box.shape)
        if rows is not None:
            shape[0] = max(0, min(shape[0], rows - box.full_offset[0]))
        outer, inner = full, local
        for dim, size in enumerate(shape):
            outer = outer.narrow(dim, min(box.full_offset[dim], outer.shape[dim] - size), size)
            inner = inner.narrow(dim, box.local_offset[dim], size)
        if to_full:
            outer.copy_(inner)
        else:
            inner.copy_(outer)


def full_tensor(layouts: Iterable[ParamLayout], locals_: Iterable[Tensor]) -> Tensor:
    """The full parameter from the local tensors of all shards, in any order.

    Args:
        layouts: Layout of each local tensor, of one parameter.
        locals_: The local tensors.
    """
    full: Tensor | None = None
    for layout, local in zip(layouts, locals_, strict=True):
        if full is None:
            full = local.new_empty(layout.full_shape)
        copy_boxes(full, local, layout, to_full=True)
    if full is None:
        raise ValueError("a parameter without shards")
    return full


def _replaced(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])

"""Arithmetic of rectangular regions: how tensors are cut into the chunks of a checkpoint.

What a process stores is any contiguous range of its part of a tensor (a sharded optimizer cuts
where it likes); what a checkpoint holds are rectangles of the full tensor, which every reader can
cut again in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megacore.parallel.layout import ParamLayout

Index = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A rectangle of a tensor.

    Attributes:
        offsets: First index, per dimension.
        sizes: Number of indices, per dimension.
    """

    offsets: Index
    sizes: Index

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    def overlap(self, other: Region) -> Region | None:
        """What both have, None when that is nothing."""
        starts = tuple(map(max, self.offsets, other.offsets))
        ends = map(min, self._ends(), other._ends())
        sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return Region(starts, sizes) if all(size > 0 for size in sizes) else None

    def inside(self, shape: Sequence[int]) -> bool:
        """Whether it lies in a tensor of this shape."""
        return len(shape) == len(self.sizes) and all(
            offset >= 0 and size >= 0 and offset + size <= extent
            for offset, size, extent in zip(self.offsets, self.sizes, shape, strict=True)
        )

    def _ends(self) -> Iterator[int]:
        return (offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))

    def of(self, tensor: Tensor, origin: Index) -> Tensor:
        """The view of a tensor, whose first element is at `origin`, that is this region."""
        for dim, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            if size != tensor.shape[dim]:
                tensor = tensor.narrow(dim, offset - origin[dim], size)
        return tensor


def whole(shape: Sequence[int]) -> Region:
    """All of a tensor."""
    return Region((0,) * len(shape), tuple(shape))


def flat_regions(shape: Sequence[int], start: int, count: int) -> Iterator[tuple[int, Region]]:
    """Cuts a range of a flattened tensor into rectangles.

    Each is contiguous in the flattened tensor. There are at most 2 * dimensions - 1 of them.

    Args:
        shape: Of the tensor.
        start: First element of the range.
        count: Number of elements; the range must lie in the tensor.

    Yields:
        First element of the rectangle, counted from `start`, and the rectangle, in order.
    """
    if count == math.prod(shape):
        yield 0, whole(shape)
        return
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    position, end = start, start + count
    while position < end:
        # The outermost dimension of which whole slices begin here and fit.
        dim = next(d for d, s in enumerate(strides) if position % s == 0 and position + s <= end)
        index = [position // stride % size for stride, size in zip(strides, shape, strict=True)]
        slices = min((end - position) // strides[dim], shape[dim] - index[dim])
        sizes = (1,) * dim + (slices,) + tuple(shape[dim + 1 :])
        yield position - start, Region(tuple(index), sizes)
        position += slices * strides[dim]


def part_regions(layout: ParamLayout, start: int, flat: Tensor) -> Iterator[tuple[Region, Tensor]]:
    """Cuts a range of a process's part into rectangles of the full tensor.

    Args:
        layout: Which part it is.
        start: First element of the range in the flattened part.
        flat: [n] the range.

    Yields:
        Rectangle of the full tensor, and the view of `flat` that it is, in its shape.
    """
    boxes = layout.boxes()
    for first, local in flat_regions(layout.local_shape, start, flat.numel()):
        view = flat[first : first + local.numel].view(local.sizes)
        for box in boxes:
            common = local.overlap(Region(box.local_offset, box.shape))
            if local.numel == 0:
                common = local
            if common is None:
                continue
            full = Region(
                tuple(
                    offset - inner + outer
                    for offset, inner, outer in zip(
                        common.offsets, box.local_offset, box.full_offset, strict=True
                    )
                ),
                common.sizes,
            )
            yield full, common.of(view, local.offsets)
            if local.numel == 0:
                break


def tiling_fault(shape: Sequence[int], regions: Iterable[Region]) -> str | None:
    """What regions leave out of a tensor, or have twice; None when they are exactly all of it."""
    ordered = sorted((r for r in regions), key=lambda region: region.offsets)
    total = 0
    open_: list[Region] = []
    for region in ordered:
        if not region.inside(shape):
            return f"{_text(region)} is not inside of its shape {list(shape)}"
        total += region.numel
        if not region.sizes:
            open_ = [*open_, region]
            if len(open_) > 1:
                return "it is there twice"
            continue
        first = region.offsets[0]
        open_ = [other for other in open_ if other.offsets[0] + other.sizes[0] > first]
        twice = next((other for other in open_ if other.overlap(region)), None)
        if twice is not None:
            return f"{_text(twice)} and {_text(region)} overlap"
        open_.append(region)
    if total != math.prod(shape) or not ordered:
        return f"only {total} of its {math.prod(shape)} elements are there"
    return None


def _text(region: Region) -> str:
    return f"the chunk at {list(region.offsets)} of size {list(region.sizes)}"


def fragment_regions(
    shape: Sequence[int], grid: Sequence[int], chunk: Region
) -> Iterator[tuple[int, Region]]:
    """Cuts a chunk of a tensor that was stored as flattened fragments into rectangles.

    Megatron-Core stores the state of a sharded optimizer as a tensor of shape [X/x, Y/y, ...,
    x * y * ...] when processes have fragments of shape [x, y, ...] of one of shape [X, Y, ...].

    Args:
        shape: [X, Y, ...].
        grid: [X/x, Y/y, ...].
        chunk: Region of the stored tensor: an index into the grid, and a range.

    Yields:
        First element of the rectangle in the flattened chunk, and the rectangle of the tensor of
        shape `shape`.

    Raises:
        ValueError: The grid does not divide the shape.
    """
    if len(grid) != len(shape) or any(
        parts <= 0 or extent % parts for extent, parts in zip(shape, grid, strict=True)
    ):
        raise ValueError(f"fragments {list(grid)} do not divide {list(shape)}")
    fragment = tuple(extent // parts for extent, parts in zip(shape, grid, strict=True))
    stored = Region((0,) * (len(grid) + 1), (*grid, math.prod(fragment)))
    if not chunk.inside(stored.sizes) or any(size != 1 for size in chunk.sizes[:-1]):
        raise ValueError(f"{_text(chunk)} is not a part of one fragment")
    origin = [index * size for index, size in zip(chunk.offsets, fragment, strict=False)]
    for first, local in flat_regions(fragment, chunk.offsets[-1], chunk.sizes[-1]):
        offsets = tuple(a + b for a, b in zip(origin, local.offsets, strict=True))
        yield first, Region(offsets, local.sizes)

"""What one process puts into a checkpoint, and a copy of it that training cannot change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore.checkpoint.chunks import Index, Region, part_regions, whole
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.sharded_keys import GROUPS, is_unambiguous

# Chunks in a snapshot begin at multiples of this many bytes.
_ALIGNMENT = 64
# More threads than this only wait for the memory.
_COPY_THREADS = 4


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor that this process writes.

    Attributes:
        group: "model", "optimizer" or "rng".
        name: Of the tensor.
        shape: Full shape of the tensor.
        region: Which rectangle of it.
        data: [region.sizes] the values, on any device.
    """

    group: str
    name: str
    shape: Index
    region: Region
    data: Tensor


@dataclass(frozen=True)
class Content:
    """All that one process writes into one checkpoint.

    Attributes:
        iteration: Completed iterations.
        state: Everything that is not a tensor, as the text of a JSON object.
        chunks: What this process writes of the tensors. Of no element do two processes write.
    """

    iteration: int
    state: str
    chunks: tuple[Chunk, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(chunk.data.nbytes for chunk in self.chunks)


def collect(
    iteration: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    parts: Mapping[str, Sequence[Part]] | None = None,
) -> Content:
    """What `SaveDirectory.save` is to write; arguments are its. Nothing is copied.

    Raises:
        ValueError, TypeError: A tensor or value cannot be stored.
    """
    for group in {**tensors, **(parts or {})}:
        if group not in GROUPS:
            raise ValueError(f"tensor group {group!r}: expected one of {', '.join(GROUPS)}")
    chunks: list[Chunk] = []
    for group, named in tensors.items():
        for name, tensor in named.items():
            _check(group, name, tensor)
            shape = tuple(tensor.shape)
            chunks.append(Chunk(group, name, shape, whole(shape), tensor.detach()))
    for group, own in (parts or {}).items():
        for part in own:
            layout = part.layout
            _check(group, layout.name, part.data)
            flat = part.data.detach().reshape(-1)
            chunks += [
                Chunk(group, layout.name, layout.full_shape, region, view)
                for region, view in part_regions(layout, part.start, flat)
            ]
    state = json.dumps(dict(values), allow_nan=False)
    return Content(iteration, state, tuple(chunks))


def _check(group: str, name: str, tensor: Tensor) -> None:
    if not is_unambiguous(group, name):
        raise ValueError(f"tensor {name!r} of the {group} state would be read as another one")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"tensor {name} of the {group} state cannot be stored: {tensor.layout} of "
            f"{tensor.dtype} on {tensor.device}"
        )


def snapshot_bytes(content: Content) -> int:
    """Size of the memory that `snapshot` needs."""
    return sum(aligned(chunk.data.nbytes) for chunk in content.chunks)


@torch.no_grad()
def snapshot(content: Content, memory: Tensor) -> Content:
    """Copies all tensors, so that they may change while the copy is written.

    Args:
        content: What is to be written.
        memory: uint8 [at least `snapshot_bytes`] on the CPU, shared or pinned memory perhaps; it
            holds the copies.

    Returns:
        The same content, with tensors that lie in `memory`.
    """
    copied: list[Chunk] = []
    position = 0
    for chunk in content.chunks:
        size = chunk.data.nbytes
        data = memory[position : position + size].view(chunk.data.dtype).view(chunk.region.sizes)
        copied.append(replace(chunk, data=data))
        position += aligned(size)
    pairs = list(zip(copied, content.chunks, strict=True))
    plain = [(mine, other) for mine, other in pairs if _is_plain(other.data)]
    for mine, other in pairs:
        if not _is_plain(other.data):
            # By this thread, whose stream of the GPU has made the values.
            mine.data.copy_(other.data, non_blocking=True)
    # Whole tensors for each thread: when the machine is busy, threads that share one tensor spend
    # their time waiting for each other.
    with ThreadPoolExecutor(min(_COPY_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(lambda pair: np.copyto(_bytes(pair[0]), _bytes(pair[1])), plain):
            pass
    if any(chunk.data.is_cuda for chunk in content.chunks):
        torch.cuda.synchronize()
    return replace(content, chunks=tuple(copied))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0


def _bytes(chunk: Chunk) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = chunk.data.detach().view(-1).view(torch.uint8).numpy()
    return array


def aligned(num_bytes: int) -> int:
    """What a tensor takes up in the memory of `snapshot`."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def spread(sizes: Iterable[int], count: int) -> list[int]:
    """Deals things out into `count` piles of about equal size, large ones first.

    Returns:
        The pile of each thing.
    """
    ordered = sorted(enumerate(sizes), key=lambda item: (-item[1], item[0]))
    loads, piles = [0] * count, [0] * len(ordered)
    for index, size in ordered:
        pile = loads.index(min(loads))
        loads[pile] += size
        piles[index] = pile
    return piles

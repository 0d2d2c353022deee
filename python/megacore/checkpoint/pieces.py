"""Tensors that are stored in pieces, each written by the process that had it.

A process of a parallel run has a part of a parameter (tensor parallelism), and of that part a
range of its optimizer state (sharded optimizer). It stores what it has, with a note of where in
the full tensor that belongs. Reading puts the full tensor together, so a checkpoint does not
depend on the layout of the run that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.vocabulary import VocabularyRows
from megacore.errors import CheckpointError
from megacore.parallel.layout import ParamLayout, copy_boxes


@dataclass(frozen=True)
class Piece:
    """Where a stored tensor belongs.

    Attributes:
        layout: Which part of the full tensor a process had. Its name is that of the full tensor.
        start: First element, of the flattened part, that is stored.
        count: How many elements are.
    """

    layout: ParamLayout
    start: int
    count: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the full tensor."""
        full = math.prod(self.layout.full_shape)
        return not self.layout.is_sharded and self.count == full

    @property
    def key(self) -> str:
        """Its name in a file: that of the tensor when it is whole."""
        layout = self.layout
        return layout.name if self.is_whole else f"{layout.name}@{layout.shard}:{self.start}"

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        layout = self.layout
        return {
            "name": layout.name,
            "shape": list(layout.full_shape),
            "dim": layout.shard_dim,
            "parts": layout.num_shards,
            "part": layout.shard,
            "fold": layout.fold,
            "start": self.start,
            "count": self.count,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Piece:
        """From what `values` gave.

        Raises:
            ValueError, KeyError, TypeError: Something is missing or impossible.
        """
        layout = ParamLayout(
            name=str(values["name"]),
            full_shape=tuple(int(size) for size in values["shape"]),
            shard_dim=None if values["dim"] is None else int(values["dim"]),
            num_shards=int(values["parts"]),
            shard=int(values["part"]),
            fold=int(values["fold"]),
        )
        piece = cls(layout, int(values["start"]), int(values["count"]))
        _check(piece)
        return piece


def _check(piece: Piece) -> None:
    layout = piece.layout
    if min(layout.full_shape, default=0) < 0:
        raise ValueError(f"{layout.name}: impossible shape {list(layout.full_shape)}")
    if layout.shard_dim is None:
        fits = layout.num_shards == 1 and layout.shard == 0
    else:
        fits = (
            0 <= layout.shard_dim < len(layout.full_shape)
            and layout.num_shards > 0
            and 0 <= layout.shard < layout.num_shards
            and layout.fold > 0
            and layout.full_shape[layout.shard_dim] % (layout.fold * layout.num_shards) == 0
        )
    if not fits:
        raise ValueError(f"{layout.name}: impossible part")
    if piece.start < 0 or piece.start + piece.count > math.prod(layout.local_shape):
        raise ValueError(f"{layout.name}: impossible range")


@dataclass(frozen=True)
class Part:
    """What a process contributes to a checkpoint of one tensor.

    Attributes:
        layout: Which part of the full tensor the process has.
        data: The part, or a flat range of it.
        start: First element of the range.
    """

    layout: ParamLayout
    data: Tensor
    start: int = 0

    @property
    def piece(self) -> Piece:
        """Where it belongs."""
        return Piece(self.layout, self.start, self.data.numel())


def whole_layout(name: str, shape: tuple[int, ...]) -> ParamLayout:
    """The layout of a tensor that a process has as a whole."""
    return ParamLayout(name=name, full_shape=shape)


def whole_piece(name: str, shape: tuple[int, ...]) -> Piece:
    """The piece that is a whole tensor."""
    return Piece(whole_layout(name, shape), 0, math.prod(shape))


def named_parts(parts: Sequence[Part]) -> tuple[dict[str, Tensor], dict[str, Piece]]:
    """Key in the file -> tensor, and key -> piece for those that are not whole tensors."""
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, Piece] = {}
    for part in parts:
        piece = part.piece
        if piece.is_whole:
            tensors[piece.key] = part.data.view(part.layout.full_shape)
        else:
            tensors[piece.key] = part.data.reshape(-1)
            pieces[piece.key] = piece
    return tensors, pieces


def missing_elements(pieces: Sequence[Piece]) -> str | None:
    """What the pieces of one tensor leave out or do twice; None when they are all of it."""
    first = pieces[0].layout
    shape, dim = first.full_shape, first.shard_dim
    if any(
        (p.layout.full_shape, p.layout.shard_dim, p.layout.num_shards, p.layout.fold)
        != (shape, dim, first.num_shards, first.fold)
        for p in pieces
    ):
        return "its pieces were cut in different ways"
    for shard in range(first.num_shards):
        own = sorted((p for p in pieces if p.layout.shard == shard), key=lambda p: p.start)
        end = 0
        for piece in own:
            if piece.start != end:
                return (
                    f"part {shard} of {first.num_shards}: expected element {end} next, found "
                    + (str(piece.start))
                )
            end += piece.count
        size = math.prod(first.local_shape)
        if end != size:
            return f"part {shard} of {first.num_shards} has {end} of its {size} elements"
    return None


def assemble(pieces: Sequence[tuple[Piece, Tensor]]) -> Tensor:
    """The full tensor.

    Args:
        pieces: All pieces of one tensor with their data; nothing is missing.
    """
    layout = pieces[0][0].layout
    full = torch.empty(layout.full_shape, dtype=pieces[0][1].dtype)
    by_shard: dict[int, list[tuple[Piece, Tensor]]] = {}
    for piece, data in pieces:
        by_shard.setdefault(piece.layout.shard, []).append((piece, data))
    for members in by_shard.values():
        ordered = [data.reshape(-1) for _, data in sorted(members, key=lambda m: m[0].start)]
        own = members[0][0].layout
        local = (ordered[0] if len(ordered) == 1 else torch.cat(ordered)).view(own.local_shape)
        copy_boxes(full, local, own, to_full=True)
    return full


def place(
    stored: Tensor, target: Tensor, layout: ParamLayout, vocabulary: VocabularyRows | None
) -> str | None:
    """Copies this process's part of a stored tensor into `target`.

    Args:
        stored: Full tensor of the checkpoint.
        target: Part of this process, of shape `layout.local_shape`.
        layout: Which part it is.
        vocabulary: Rows of vocabulary weights that may differ.

    Returns:
        What was done when the number of rows differs, for the log.
    """
    if tuple(stored.shape) == layout.full_shape:
        copy_boxes(stored, target, layout, to_full=False)
        return None
    if vocabulary is None:
        raise CheckpointError(
            f"{layout.name}: expected shape {list(layout.full_shape)}, found {list(stored.shape)}"
        )
    rows = min(stored.shape[0], layout.full_shape[0])
    copy_boxes(stored, target, layout, to_full=False, rows=rows)
    return vocabulary.note(len(stored), layout.full_shape[0])

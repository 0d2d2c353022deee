"""Rules of names and layout between canonical tensors and those of a Hugging Face family.

A family has one table of rows; each row is used in both directions. Every transform only permutes,
cuts and concatenates, so the way there and back is bitwise the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megacore.layers.spec import TransformerSpec

Kind = Literal["same", "qkv", "stacked_qkv", "kv", "halves"]
"""How the tensors of a family become the canonical one.

same: one tensor, as it is.
qkv: three tensors, rows of all query, key and value heads.
stacked_qkv: the same three below each other in one tensor.
kv: two tensors, rows of all key and value heads.
halves: two tensors below each other (the gate of a gated MLP, then the value).
"""

LAYER, LAYER_BEFORE, LAST_LAYER = "{i}", "{i-1}", "{last}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule, for one tensor or for that of every layer.

    Attributes:
        ours: Canonical name; "{i}" is the number of the layer.
        theirs: Names in the family; "{i-1}" is the number of the layer before, "{last}" that of
            the last layer.
        kind: How the tensors become the canonical one.
        transposed: Matrices are stored [in, out] (the Conv1D of GPT-2).
    """

    ours: str
    theirs: tuple[str, ...]
    kind: Kind = "same"
    transposed: bool = False


def row(ours: str, *theirs: str, kind: Kind = "same", transposed: bool = False) -> Row:
    """A row of a table."""
    return Row(ours=ours, theirs=theirs, kind=kind, transposed=transposed)


def rows(ours: str, *theirs: str, kind: Kind = "same", transposed: bool = False) -> list[Row]:
    """The rows of a weight and its bias, whose names end so; a model without biases has no bias."""
    return [
        row(
            f"{ours}{end}",
            *(f"{name}{end.removeprefix('_')}" for name in theirs),
            kind=kind,
            transposed=transposed,
        )
        for end in ("weight", "bias")
    ]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A row for one tensor of one model.

    Attributes:
        ours: Canonical name.
        theirs: Names in the family.
        row: The row of the table.
        spec: The model.
    """

    ours: str
    theirs: tuple[str, ...]
    row: Row
    spec: TransformerSpec

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The canonical tensor from those of the family, in order of `theirs`."""
        if self.row.transposed:
            parts = [part.t() if part.dim() == 2 else part for part in parts]
        if self.row.kind == "stacked_qkv":
            parts = parts[0].split(self._qkv_rows())
        if self.row.kind in ("qkv", "stacked_qkv", "kv"):
            return self._grouped(parts)
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of the family from the canonical one, in order of `theirs`."""
        parts = [tensor]
        if self.row.kind in ("qkv", "stacked_qkv"):
            parts = self._by_kind(tensor)
        if self.row.kind == "stacked_qkv":
            parts = [torch.cat(parts)]
        if self.row.kind == "kv":
            heads = tensor.unflatten(0, (self.spec.num_groups, 2, self.spec.head_dim))
            parts = [part.flatten(0, 1) for part in heads.unbind(1)]
        if self.row.kind == "halves":
            parts = list(tensor.chunk(2))
        if self.row.transposed:
            parts = [part.t() if part.dim() == 2 else part for part in parts]
        return parts

    def their_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes in the family of a canonical tensor of this shape."""
        return [tuple(part.shape) for part in self.split(torch.empty(shape, device="meta"))]

    def _qkv_rows(self) -> list[int]:
        spec = self.spec
        heads = (spec.num_heads, spec.num_groups, spec.num_groups)
        return [count * spec.head_dim for count in heads]

    def _grouped(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of all heads of each kind to, per group, its queries, if any, its key, its value."""
        by_group = [part.unflatten(0, (self.spec.num_groups, -1)) for part in parts]
        return torch.cat(by_group, dim=1).flatten(0, 1)

    def _by_kind(self, tensor: Tensor) -> list[Tensor]:
        spec = self.spec
        ratio = spec.num_heads // spec.num_groups
        heads = tensor.unflatten(0, (spec.num_groups, ratio + 2, spec.head_dim))
        return [part.flatten(0, 2) for part in heads.split((ratio, 1, 1), dim=1)]


def rules_for(table: Sequence[Row], names: Sequence[str], spec: TransformerSpec) -> dict[str, Rule]:
    """Canonical name -> its rule, for every tensor of a model.

    Args:
        table: Rows of the family; those of tensors that the model does not have are left out, and
            of two rows for a tensor the later one counts.
        names: Canonical names of the model's tensors.
        spec: The model.

    Raises:
        KeyError: A tensor is in no row: the family cannot hold this model.
    """
    found: dict[str, Rule] = {}
    for entry in table:
        layers: Sequence[int | None] = [None]
        if LAYER in entry.ours:
            layers = range(_depth(names, entry.ours.partition(LAYER)[0]))
        for layer in layers:
            ours = _filled(entry.ours, layer, spec)
            theirs = tuple(_filled(name, layer, spec) for name in entry.theirs)
            found[ours] = Rule(ours=ours, theirs=theirs, row=entry, spec=spec)
    missing = [name for name in names if name not in found]
    if missing:
        raise KeyError(missing[0])
    return {name: found[name] for name in names}


def _depth(names: Sequence[str], stack: str) -> int:
    """Layers of a stack, whose names begin with `stack` and the number."""
    numbers = (name[len(stack) :].partition(".")[0] for name in names if name.startswith(stack))
    return max((int(number) + 1 for number in numbers), default=0)


def _filled(name: str, layer: int | None, spec: TransformerSpec) -> str:
    name = name.replace(LAST_LAYER, str(spec.num_layers - 1))
    if layer is None:
        return name
    return name.replace(LAYER, str(layer)).replace(LAYER_BEFORE, str(layer - 1))

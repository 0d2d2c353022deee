"""The table of a conversion: where every tensor came from, what it became, what stayed behind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from megacore.checkpoint.convert.model_stream import TensorInfo


@dataclass
class Row:
    """One canonical tensor.

    Attributes:
        name: Its canonical name.
        origins: Names in the source.
        found: Shape and dtype in the source.
        written: Shape and dtype in the target.
        destinations: Names in the target; empty until it was written.
    """

    name: str
    origins: tuple[str, ...]
    found: TensorInfo
    written: TensorInfo
    destinations: tuple[str, ...] = ()


@dataclass
class Table:
    """All tensors of a conversion.

    Attributes:
        rows: The tensors that were converted.
        left_out: Tensor of the source that was not -> why.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The table as JSON can hold it."""
        return {
            "tensors": [
                {
                    "source": list(row.origins),
                    "canonical": row.name,
                    "target": list(row.destinations),
                    "source_shape": list(row.found.shape),
                    "target_shape": list(row.written.shape),
                    "source_dtype": dtype_name(row.found.dtype),
                    "target_dtype": dtype_name(row.written.dtype),
                }
                for row in self.rows
            ],
            "unmapped": dict(self.left_out),
        }

    def text(self) -> str:
        """The table for people; rows that differ in their layer only are one."""
        groups: dict[tuple[str, ...], int] = {}
        for row in self.rows:
            name = _general(row.name)
            source, target = _joined(row.origins), _joined(row.destinations)
            cells = (
                "=" if source == name else source,
                name,
                "=" if target == name else target,
                _change(_shape(row.found.shape), _shape(row.written.shape)),
                _change(dtype_name(row.found.dtype), dtype_name(row.written.dtype)),
            )
            groups[cells] = groups.get(cells, 0) + 1
        head = ("source", "canonical", "target", "shape", "dtype", "tensors")
        lines = _aligned([head, *((*cells, str(count)) for cells, count in groups.items())])
        skipped: dict[tuple[str, str], int] = {}
        for name, reason in self.left_out.items():
            key = (_general(name), reason)
            skipped[key] = skipped.get(key, 0) + 1
        lines += [
            f"not converted: {name}" + (f" ({count} tensors)" if count > 1 else "") + f": {reason}"
            for (name, reason), count in skipped.items()
        ]
        return "\n".join(lines)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without the name of the library: bfloat16."""
    return str(dtype).removeprefix("torch.")


def _general(name: str) -> str:
    """A name with * for the numbers that count layers or ranks."""
    return re.sub(r"(?<![^._])\d+(?![^._:])", "*", name)


def _joined(names: tuple[str, ...]) -> str:
    """Several names as one: model.layers.*.self_attn.{q,k,v}_proj.weight."""
    different = list(dict.fromkeys(map(_general, names)))
    if len(different) < 2:
        return "".join(different)
    start = _common_start(different)
    end = _common_start([name[len(start) :][::-1] for name in different])[::-1]
    middles = [name[len(start) : len(name) - len(end)] for name in different]
    return f"{start}{{{','.join(middles)}}}{end}"


def _common_start(names: list[str]) -> str:
    first, last = min(names), max(names)  # what these two share, all between them share
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:length]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]

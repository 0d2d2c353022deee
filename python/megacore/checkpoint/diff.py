"""What two checkpoints have in common, whatever formats and layouts they were written in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.open import open_checkpoint

# Elements that are compared at a time, in float64.
_STEP = 1 << 22


@dataclass(frozen=True)
class SettingDifference:
    """A value that differs.

    Attributes:
        name: Path of keys, such as "args.lr".
        first: In the first checkpoint, None when it is not there.
        second: In the second one.
    """

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs, or is in one checkpoint only.

    Attributes:
        group: "model", "optimizer" or "rng".
        name: Its name.
        what: Why it cannot be compared, or "" when it was.
        max_absolute: Largest difference of two elements; infinite for a NaN on one side.
        max_relative: Largest difference of two elements over the larger of the two.
        num_different: Elements that differ.
        num_elements: All elements.
    """

    group: str
    name: str
    what: str = ""
    max_absolute: float = 0.0
    max_relative: float = 0.0
    num_different: int = 0
    num_elements: int = 0


@dataclass(frozen=True)
class Comparison:
    """What comparing two checkpoints gave.

    Attributes:
        num_tensors: Tensors that either of them has.
        settings: Values that differ.
        tensors: Tensors that differ.
    """

    num_tensors: int
    settings: tuple[SettingDifference, ...]
    tensors: tuple[TensorDifference, ...]

    def beyond(self, tolerance: float) -> list[TensorDifference]:
        """The tensors that differ by more than a tolerance, or cannot be compared.

        Args:
            tolerance: Largest absolute difference that is accepted.
        """
        return [t for t in self.tensors if t.what or not t.max_absolute <= tolerance]


def compare(first: Path, second: Path, *, groups: tuple[str, ...] | None = None) -> Comparison:
    """Compares two checkpoints, one tensor at a time.

    Args:
        first: Directory with the files of one.
        second: Of the other.
        groups: Which groups of tensors; None for all that either has.

    Raises:
        CheckpointError: One of them is damaged or not complete.
    """
    one, two = open_checkpoint(first), open_checkpoint(second)
    wanted = groups or tuple(dict.fromkeys((*one.groups, *two.groups)))
    count, tensors = 0, []
    for group in wanted:
        mine, other = _names(one, group), _names(two, group)
        for name in dict.fromkeys((*mine, *other)):
            count += 1
            if name not in mine or name not in other:
                which = "second" if name not in mine else "first"
                tensors.append(TensorDifference(group, name, f"only in the {which}"))
                continue
            found = _compare(group, name, one.read(group, name), two.read(group, name))
            if found is not None:
                tensors.append(found)
    return Comparison(count, tuple(_settings(one.values, two.values)), tuple(tensors))


def _names(checkpoint: Checkpoint, group: str) -> dict[str, None]:
    return dict.fromkeys(checkpoint.names(group)) if group in checkpoint.groups else {}


def _compare(group: str, name: str, first: Tensor, second: Tensor) -> TensorDifference | None:
    """How two tensors differ; None when they are equal in every element."""
    if first.shape != second.shape:
        what = f"shapes {list(first.shape)} and {list(second.shape)}"
        return TensorDifference(group, name, what)
    absolute = relative = 0.0
    different = 0
    a, b = first.reshape(-1), second.reshape(-1)
    for start in range(0, a.numel(), _STEP):
        x, y = a[start : start + _STEP], b[start : start + _STEP]
        if x.dtype == y.dtype and torch.equal(x, y):
            continue
        x, y = x.double(), y.double()
        unequal = (x != y) & ~(x.isnan() & y.isnan())
        if not unequal.any():
            continue
        x, y = x[unequal], y[unequal]
        distance = (x - y).abs().nan_to_num(nan=math.inf)
        larger = torch.maximum(x.abs(), y.abs()).nan_to_num(nan=math.inf)
        different += int(unequal.sum())
        absolute = max(absolute, float(distance.max()))
        relative = max(relative, float((distance / larger).nan_to_num(nan=1.0).max()))
    if different:
        return TensorDifference(
            group,
            name,
            max_absolute=absolute,
            max_relative=relative,
            num_different=different,
            num_elements=a.numel(),
        )
    if first.dtype != second.dtype:
        return TensorDifference(group, name, f"dtypes {first.dtype} and {second.dtype}")
    return None


def _settings(
    first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = ""
) -> Iterator[SettingDifference]:
    for name in dict.fromkeys((*first, *second)):
        mine, other = first.get(name), second.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from _settings(mine, other, f"{prefix}{name}.")
        elif mine != other:
            yield SettingDifference(f"{prefix}{name}", mine, other)


def format_comparison(comparison: Comparison, *, tolerance: float) -> str:
    """A comparison as text.

    Args:
        comparison: What to show.
        tolerance: Tensors that differ by less are counted only.
    """
    lines = [
        f"setting {d.name}: {_shown(d.first)} | {_shown(d.second)}" for d in comparison.settings
    ]
    beyond = comparison.beyond(tolerance)
    for tensor in beyond:
        what = tensor.what or (
            f"{tensor.num_different} of {tensor.num_elements} elements differ, by at most "
            f"{tensor.max_absolute:.6g} (relative {tensor.max_relative:.3g})"
        )
        lines.append(f"{tensor.group} {tensor.name}: {what}")
    within = len(comparison.tensors) - len(beyond)
    equal = comparison.num_tensors - len(comparison.tensors)
    lines.append(
        f"{comparison.num_tensors} tensors: {equal} equal"
        + (f", {within} within {tolerance:g}" if within else "")
        + f", {len(beyond)} different; {len(comparison.settings)} settings differ"
    )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

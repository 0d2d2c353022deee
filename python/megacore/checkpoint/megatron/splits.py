"""How tensor parallelism cuts the tensors of a Megatron checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from megacore.parallel.layout import ParamLayout
from megacore.parallel.splits import SPLITS

_FC1, _FC2 = "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"
_DIMENSIONS = {"column": 0, "row": 1, "vocabulary": 0, "head table": 1}


def cut_of(name: str, *, gated: bool) -> tuple[int | None, int]:
    """Which dimension of a tensor is cut, and of how many parts that are cut alike it consists.

    Args:
        name: Canonical name.
        gated: The MLP has a gate.
    """
    layer, _, kind = name.rpartition(".")
    row = next((row for row in SPLITS if fnmatchcase(layer, row.layers)), None)
    if row is None or kind not in ("weight", "bias"):
        return None, 1
    dim = _DIMENSIONS.get(row.split)
    if kind == "bias" and row.split != "column":
        dim = None
    return dim, 2 if dim == 0 and row.gated and gated else 1


def layout_of(
    name: str, local_shape: tuple[int, ...], *, gated: bool, num_shards: int, shard: int
) -> ParamLayout:
    """How a rank's tensor is cut from the full one.

    Args:
        name: Canonical name.
        local_shape: Shape that the rank has.
        gated: The MLP has a gate.
        num_shards: Tensor-parallel size.
        shard: Tensor-parallel rank.
    """
    dim, fold = cut_of(name, gated=gated)
    if dim is None:
        return ParamLayout(name=name, full_shape=local_shape)
    full = (*local_shape[:dim], local_shape[dim] * num_shards, *local_shape[dim + 1 :])
    return ParamLayout(
        name=name, full_shape=full, shard_dim=dim, num_shards=num_shards, shard=shard, fold=fold
    )


def full_layout(
    name: str, full_shape: tuple[int, ...], *, gated: bool, num_shards: int, shard: int
) -> ParamLayout:
    """How a rank's tensor is cut from a full one of this shape.

    Raises:
        ValueError: The shape cannot be divided among so many ranks.
    """
    dim, fold = cut_of(name, gated=gated)
    if dim is None or num_shards == 1:
        return ParamLayout(name=name, full_shape=full_shape)
    if full_shape[dim] % (fold * num_shards):
        raise ValueError(
            f"{name}: dimension {dim} of {list(full_shape)} cannot be divided among {num_shards} "
            "tensor-parallel ranks"
        )
    return ParamLayout(
        name=name,
        full_shape=full_shape,
        shard_dim=dim,
        num_shards=num_shards,
        shard=shard,
        fold=fold,
    )


def is_gated(tensors: Mapping[str, Tensor]) -> bool:
    """Whether MLPs have a gate: two rows of the first projection for each input of the second.

    Args:
        tensors: Canonical name -> tensor of a rank.
    """
    for name, first in tensors.items():
        if name.endswith(_FC1):
            second = tensors.get(name.removesuffix(_FC1) + _FC2)
            return second is not None and first.shape[0] == 2 * second.shape[1]
    return False

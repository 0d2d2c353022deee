"""Order of the rows of query-key-value projections in checkpoints of old versions."""

from __future__ import annotations

from torch import Tensor

_PARTS = 3


def in_current_order(rows: Tensor, version: float, *, num_heads: int) -> Tensor:
    """The rows as [heads, 3, channels], which is the order since version 2.

    Version 0 had [3, heads, channels], version 1 [heads, channels, 3]. None of them knew groups of
    query heads.

    Args:
        rows: [3 * heads * channels, ...] of one tensor-parallel rank: weight, bias, or a state of
            the optimizer.
        version: `checkpoint_version` of the file.
        num_heads: Heads of that rank.

    Raises:
        ValueError: The rows are not those of so many heads.
    """
    if version >= 2:
        return rows
    if rows.shape[0] % (_PARTS * num_heads):
        raise ValueError(f"{rows.shape[0]} rows are not 3 parts of {num_heads} heads")
    inner = tuple(rows.shape[1:])
    if version >= 1:
        split = rows.reshape(num_heads, -1, _PARTS, *inner).transpose(1, 2)
    else:
        split = rows.reshape(_PARTS, num_heads, -1, *inner).transpose(0, 1)
    return split.reshape(rows.shape)

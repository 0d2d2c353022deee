"""Lookup in an embedding table, with a gradient that is summed in float32 in a fixed order.

PyTorch's CPU gradient adds in the dtype of the table: in bfloat16 a sum over a frequent token stops
growing after a few hundred occurrences. Here the tokens are sorted by row, and each row of the
gradient is one sum in the order of its tokens. The kernels are `csrc/kernels/embedding.*`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops import library


def embedding(table: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table.

    Args:
        table: [V, H] float32, bfloat16 or float16; float64 takes PyTorch's own gradient.
        indices: [...] int64, each in [0, V).

    Returns:
        [..., H] in the dtype of the table.
    """
    if table.dtype == torch.float64:
        return F.embedding(indices, table)
    rows: Tensor = torch.ops.megacore.embedding(table, indices)
    return rows


def embedding_reference(table: Tensor, indices: Tensor) -> Tensor:
    """`embedding` in plain PyTorch; its gradient is PyTorch's."""
    return F.embedding(indices, table)


def _lookup(table: Tensor, indices: Tensor) -> Tensor:
    return F.embedding(indices, table)


def _fake_lookup(table: Tensor, indices: Tensor) -> Tensor:
    return table.new_empty((*indices.shape, table.shape[1]))


def _reference_gradient(dout: Tensor, ascending: Tensor, order: Tensor, num_rows: int) -> Tensor:
    total = torch.zeros(num_rows, dout.shape[1], dtype=torch.float32, device=dout.device)
    return total.index_add_(0, ascending, dout[order].float()).to(dout.dtype)


def _fake_gradient(dout: Tensor, ascending: Tensor, order: Tensor, num_rows: int) -> Tensor:
    return dout.new_empty(num_rows, dout.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, indices = inputs
    ctx.save_for_backward(indices)
    ctx.num_rows = table.shape[0]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    # Stable: equal rows stay in the order of the tokens.
    ascending, order = torch.sort(indices.reshape(-1), stable=True)
    flat = dout.reshape(order.shape[0], dout.shape[-1]).contiguous()
    return torch.ops.megacore.embedding_gradient(flat, ascending, order, ctx.num_rows), None


library.define(
    "embedding(Tensor table, Tensor indices) -> Tensor", reference=_lookup, fake=_fake_lookup
)
library.define(
    "embedding_gradient(Tensor dout, Tensor sorted, Tensor order, int num_rows) -> Tensor",
    reference=_reference_gradient,
    fake=_fake_gradient,
)
library.register_autograd("embedding", _backward, setup_context=_setup_context)

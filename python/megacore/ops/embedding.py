"""Lookup in an embedding table, with a gradient that is summed in float32 in a fixed order.

PyTorch's CPU gradient adds in the dtype of the table: in bfloat16 a sum over a frequent token stops
growing after a few hundred occurrences. Here the tokens are sorted by row, and each row of the
gradient is one sum in the order of its tokens. Where the optimizer keeps a sum of gradients in
float32 (`add_gradients_to`), that is added to it at once: a gradient of the whole table, of which a
batch takes few rows, is not made. The kernels are `csrc/kernels/embedding.*`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops import library
from megacore.ops.linear import sum_of


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
    total = sum_of(table)
    if total is not None and total.dtype == torch.float32 and torch.is_grad_enabled():
        summed: Tensor = _Summed.apply(table, indices)
        return summed
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


def _reference_gradient_add(total: Tensor, dout: Tensor, ascending: Tensor, order: Tensor) -> None:
    total.index_add_(0, ascending, dout[order].float())


def _fake_gradient_add(total: Tensor, dout: Tensor, ascending: Tensor, order: Tensor) -> None:
    return None


def _sorted_tokens(indices: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dout [M, H], rows of the tokens in ascending order, and where each came from."""
    # Stable: equal rows stay in the order of the tokens.
    ascending, order = torch.sort(indices.reshape(-1), stable=True)
    return dout.reshape(order.shape[0], dout.shape[-1]).contiguous(), ascending, order


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        # Not saved: recompute would give back a copy, whose sum nobody looks at.
        ctx.table = table
        return F.embedding(indices, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        (indices,), table = ctx.saved_tensors, ctx.table
        total = sum_of(table)
        assert total is not None
        torch.ops.megacore.embedding_gradient_add_(total, *_sorted_tokens(indices, grads[0]))
        return None, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, indices = inputs
    ctx.save_for_backward(indices)
    ctx.num_rows = table.shape[0]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    grad = torch.ops.megacore.embedding_gradient(*_sorted_tokens(indices, dout), ctx.num_rows)
    return grad, None


library.define(
    "embedding(Tensor table, Tensor indices) -> Tensor", reference=_lookup, fake=_fake_lookup
)
library.define(
    "embedding_gradient(Tensor dout, Tensor sorted, Tensor order, int num_rows) -> Tensor",
    reference=_reference_gradient,
    fake=_fake_gradient,
)
library.define(
    "embedding_gradient_add_(Tensor(a!) total, Tensor dout, Tensor sorted, Tensor order) -> ()",
    reference=_reference_gradient_add,
    fake=_fake_gradient_add,
)
library.register_autograd("embedding", _backward, setup_context=_setup_context)

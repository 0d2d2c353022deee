"""Products of linear layers whose weight is split over the processes of a group.

A column-parallel layer has some of the outputs, a row-parallel one some of the inputs. With
sequence parallelism the other side of each is a part of the sequence: a column-parallel layer
gathers it, a row-parallel one sums and scatters it.

In backward the sum of the input's gradient (column) runs beside the product for the weight's
gradient, and with sequence parallelism the input, of which a process keeps its own part only, is
gathered again beside the product for the input's gradient. A weight gradient that is left for
later (`weight_grad.WeightGradStore`) keeps parts of the sequence only, too, and gathers then.

Sources: Shoeybi et al., "Megatron-LM" (2019), section 3; Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (2022), section 4.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megacore.ops.linear import (
    bias_gradient,
    forward_product,
    input_product,
    weight_gradient,
)
from megacore.parallel.collectives import (
    Pending,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group
from megacore.parallel.pieces import SEQUENCE, gather_product, product_scatter
from megacore.parallel.weight_grad import LateProduct, WeightGradStore


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Which communication of linear layers runs beside which product; results do not depend on it
    but for rounding.

    Attributes:
        reduce_input_grad: The sum of the input's gradient, beside the weight's gradient.
        gather_input: The second gathering of the input, beside the input's gradient.
        gather_pieces: Gather in pieces beside the product that needs them (forward of a column-,
            backward of a row-parallel layer).
        scatter_pieces: Sum and scatter in pieces beside the product that makes them, in forward
            of a row-parallel layer.
        scatter_grad_pieces: The same for the input's gradient of a column-parallel layer.
    """

    reduce_input_grad: bool = True
    gather_input: bool = True
    gather_pieces: bool = False
    scatter_pieces: bool = False
    scatter_grad_pieces: bool = False

    @classmethod
    def from_flags(cls, parallel: ParallelConfig) -> Overlap:
        """What the flags of tensor parallelism ask for."""
        background = parallel.async_tensor_model_parallel_allreduce
        if parallel.sequence_parallel:
            background = parallel.tp_comm_bulk_wgrad
        pieces = parallel.tp_comm_overlap
        return cls(
            reduce_input_grad=background,
            gather_input=parallel.tp_comm_bulk_dgrad,
            gather_pieces=pieces and parallel.tp_comm_overlap_ag,
            scatter_pieces=pieces and parallel.tp_comm_overlap_rs,
            scatter_grad_pieces=pieces and parallel.tp_comm_overlap_rs_dgrad,
        )


OVERLAP = Overlap()


@dataclass(frozen=True, kw_only=True)
class SplitProduct:
    """What the products of one model's layers have in common.

    Attributes:
        group: The processes that have the parts of the weights.
        sequence: The sequence is split outside of the pairs of layers.
        overlap: What runs beside what.
        store: Where weight gradients are left for later while it is deferring.
    """

    group: Group
    sequence: bool
    overlap: Overlap = OVERLAP
    store: WeightGradStore | None = None

    @property
    def is_deferring(self) -> bool:
        """Whether a backward pass leaves weight gradients for later."""
        return self.store is not None and self.store.is_deferring

    def defer(self, weight: Tensor, x: Pending, dy: Pending) -> None:
        """Leave the gradient of `weight` for later; `x` and `dy` are asked for only then."""
        assert self.store is not None
        self.store.defer(weight, LateProduct(x, dy))


class ColumnProduct(SplitProduct):
    """x W^T + b with some rows of W and b: x [B, S, I] whole, result [B, S, O / size].

    With `sequence` x is [B, S / size, I].
    """

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply `x` with `weight` [O / size, I]."""
        result = _Column.apply(x, weight, bias, self)
        assert isinstance(result, Tensor)
        return result


class RowProduct(SplitProduct):
    """x W^T + b with some columns of W: x [B, S, I / size], result [B, S, O] whole.

    With `sequence` the result is [B, S / size, O]. The bias is added once, behind the sum.
    """

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply `x` with `weight` [O, I / size]."""
        result = _Row.apply(x, weight, bias, self)
        assert isinstance(result, Tensor)
        return result


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, split: ColumnProduct
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.split = weight, split
        if not split.sequence:
            return forward_product(x, weight, bias)
        if split.overlap.gather_pieces:
            y, _ = gather_product(
                x, split.group, lambda part: forward_product(part, weight, bias), keep=False
            )
            return y
        return forward_product(start_all_gather(x, split.group, SEQUENCE)(), weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x,), dy, split, weight = ctx.saved_tensors, grads[0], ctx.split, ctx.weight
        overlap, group = split.overlap, split.group
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        later = need_weight and split.is_deferring
        if later:
            # Detached here and below: what made it would stay alive until then.
            split.defer(weight, partial(_gathered, x.detach(), split), lambda: dy)
        whole: Pending = partial(_same, x)
        if need_weight and not later and split.sequence:
            whole = _started(start_all_gather(x, group, SEQUENCE), overlap.gather_input)
        dx: Pending | None = None
        if need_x and split.sequence and overlap.scatter_grad_pieces:
            dx = partial(
                _same, product_scatter(dy, group, lambda part: input_product(part, weight))
            )
        elif need_x:
            product = input_product(dy, weight)
            if split.sequence:
                dx = start_reduce_scatter(product, group, SEQUENCE)
            else:
                dx = start_all_reduce(product, group)
            dx = _started(dx, overlap.reduce_input_grad)
        dweight = None
        if need_weight and not later:
            dweight = weight_gradient(weight, whole(), dy)
        dbias = bias_gradient(dy) if need_bias else None
        return dx() if dx else None, dweight, dbias, None


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, split: RowProduct
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.split = weight, split
        group = split.group
        if split.sequence and split.overlap.scatter_pieces:
            y = product_scatter(x, group, lambda part: forward_product(part, weight))
        elif split.sequence:
            y = start_reduce_scatter(forward_product(x, weight), group, SEQUENCE)()
        else:
            y = start_all_reduce(forward_product(x, weight), group)()
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x,), dy, split, weight = ctx.saved_tensors, grads[0], ctx.split, ctx.weight
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        later = need_weight and split.is_deferring
        if later:
            split.defer(weight, partial(_same, x.detach()), partial(_gathered, dy, split))
        need_weight = need_weight and not later
        # Of this process's tokens only, where the sequence is split.
        dbias = bias_gradient(dy) if need_bias else None
        dx: Tensor | None = None
        if split.sequence and split.overlap.gather_pieces and need_x:
            dx, whole = gather_product(
                dy, split.group, lambda part: input_product(part, weight), keep=need_weight
            )
        else:
            whole = _gathered(dy, split) if need_x or need_weight else None
            if need_x and whole is not None:
                dx = input_product(whole, weight)
        dweight = None
        if need_weight and whole is not None:
            dweight = weight_gradient(weight, x, whole)
        return dx, dweight, dbias, None


def _gathered(x: Tensor, split: SplitProduct) -> Tensor:
    """The whole sequence of `x`."""
    return start_all_gather(x, split.group, SEQUENCE)() if split.sequence else x


def _same(x: Tensor) -> Tensor:
    return x


def _started(pending: Pending, in_background: bool) -> Pending:
    """`pending` as it is, or waited for."""
    return pending if in_background else partial(_same, pending())

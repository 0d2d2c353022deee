"""Collectives along any dimension of a tensor, and those of them that autograd goes through.

Groups gather and scatter along dimension 0. Activations are [B, S, H] and split along S, so the
parts that arrive are put side by side with one copy (none when B is 1).

Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022),
section 4.2.2: the pairs of conjugate operations f, f' and g, g'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megacore.errors import UsageError
from megacore.parallel.groups import Group

# Waits for an operation in flight and gives its result; called once.
Pending = Callable[[], Tensor]


def start_all_gather(x: Tensor, group: Group, dim: int) -> Pending:
    """Starts to put the `x` of all members one after the other along `dim`.

    Args:
        x: [..., n, ...], the same shape everywhere; not to be changed before the result is there.
        group: Members.
        dim: Dimension of size n.

    Returns:
        Gives [..., size * n, ...].
    """
    if group.size == 1:
        return lambda: x
    x = x.contiguous()
    parts = x.new_empty((group.size, *x.shape))
    work = group.all_gather(parts.view(-1, *x.shape[1:]), x, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return joined(parts, dim)

    return finish


def start_reduce_scatter(x: Tensor, group: Group, dim: int) -> Pending:
    """Starts to sum the `x` of all members, of which each gets its part along `dim`.

    Args:
        x: [..., size * n, ...], the same shape everywhere.
        group: Members.
        dim: Dimension of size size * n.

    Returns:
        Gives [..., n, ...].

    Raises:
        UsageError: The dimension cannot be divided among the members.
    """
    if group.size == 1:
        return lambda: x
    parts = divided(x, group.size, dim).contiguous()
    out = torch.empty_like(parts[0])
    work = group.reduce_scatter(out, parts.view(-1, *parts.shape[2:]), async_op=True)

    def finish() -> Tensor:
        work.wait()
        return out

    return finish


def start_all_reduce(x: Tensor, group: Group) -> Pending:
    """Starts to sum the `x` of all members, in place where it is contiguous.

    Args:
        x: Any shape, the same everywhere; it belongs to the operation from now on.
        group: Members.

    Returns:
        Gives the sum.
    """
    x = x.contiguous()
    work = group.all_reduce(x, async_op=True)

    def finish() -> Tensor:
        work.wait()
        return x

    return finish


def divided(x: Tensor, size: int, dim: int) -> Tensor:
    """`x` [..., size * n, ...] as a view [size, ..., n, ...].

    Raises:
        UsageError: The dimension is not a multiple of `size`.
    """
    if x.shape[dim] % size:
        raise UsageError(
            f"dimension {dim} of a tensor {list(x.shape)} cannot be divided among {size} processes"
        )
    return x.unflatten(dim, (size, -1)).movedim(dim, 0)


def joined(parts: Tensor, dim: int) -> Tensor:
    """`parts` [size, ..., n, ...] as [..., size * n, ...]; a view where the layout allows it."""
    return parts.movedim(0, dim).flatten(dim, dim + 1)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return start_all_reduce(x.clone(), group)()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return start_reduce_scatter(x, group, dim)()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return start_all_gather(grads[0], ctx.group, ctx.dim)(), None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, sequence: bool) -> Tensor:
        ctx.group, ctx.sequence = group, sequence
        return start_all_gather(x, group, 1)() if sequence else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.sequence:
            return start_reduce_scatter(grads[0], ctx.group, 1)(), None, None
        return start_all_reduce(grads[0].clone(), ctx.group)(), None, None


def shared(x: Tensor, group: Group, *, sequence: bool) -> Tensor:
    """`x`, for members that each multiply it with weights of their own.

    In backward their gradients are summed.

    Args:
        x: [B, S, ...], the same everywhere; with `sequence` each has [B, S / size, ...] of it.
        group: Members.
        sequence: Put the parts of the sequence together, and cut the sum of the gradients.

    Returns:
        [B, S, ...].
    """
    result = _Shared.apply(x, group, sequence)
    assert isinstance(result, Tensor)
    return result


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return start_all_gather(x, group, dim)()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return divided(grads[0], ctx.group.size, ctx.dim)[ctx.group.rank], None, None


def join_sequence(x: Tensor, group: Group) -> Tensor:
    """The whole sequences, for what every member computes alike.

    In backward each takes its part of the gradient, which is the same everywhere.

    Args:
        x: [B, S / size, ...].
        group: Members, which all use the result alike.

    Returns:
        [B, S, ...].
    """
    result = _Join.apply(x, group, 1)
    assert isinstance(result, Tensor)
    return result


def reduce(x: Tensor, group: Group) -> Tensor:
    """The sum of the `x` of all members; the gradient of each is that of the sum.

    Args:
        x: Any shape, the same everywhere.
        group: Members, which all use the result alike.
    """
    result = _Reduce.apply(x, group)
    assert isinstance(result, Tensor)
    return result


def reduce_scatter(x: Tensor, group: Group, dim: int) -> Tensor:
    """A member's part of the sum of all `x`; in backward the gradients of the parts are gathered.

    Args:
        x: [..., size * n, ...], the same shape everywhere.
        group: Members.
        dim: Dimension of size size * n.

    Returns:
        [..., n, ...].

    Raises:
        UsageError: The dimension cannot be divided among the members.
    """
    result = _ReduceScatter.apply(x, group, dim)
    assert isinstance(result, Tensor)
    return result

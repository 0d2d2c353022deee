"""Matrix products with what follows them, and products that are added into float32.

On a CPU the product is that of a vendor's library, chosen in `csrc/kernels/gemm.*`, where that
takes the dtype and is faster than PyTorch; PyTorch's own runs elsewhere, on CUDA and for float64.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megacore.ops import library

_WIDE = (torch.float32, torch.float64)


@functools.cache
def is_native(dtype: torch.dtype, device_type: str) -> bool:
    """Whether a library beside PyTorch multiplies matrices of a dtype on a device.

    Args:
        dtype: Of both matrices.
        device_type: Such as "cpu".
    """
    if dtype == torch.float64 or not library.has_kernel("gemm", device_type):
        return False
    known: bool = torch.ops.megacore.gemm_is_native(torch.empty(0, dtype=dtype))
    return known


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    wide: bool = False,
) -> Tensor:
    """gelu(a b + bias) + residual, rounded once from float32.

    Args:
        a: [M, K] or a batch of them, floating point; one of its last two strides is 1.
        b: [K, N] or a batch, dtype of a; the same.
        bias: [N] dtype of a, or None.
        residual: [M, N] or a batch, dtype of a, contiguous; or None.
        gelu: Apply GELU (tanh); the result then has no gradient.
        wide: Give float32 (float64 for float64).

    Returns:
        [M, N] or a batch, in the dtype of a unless `wide`.

    Raises:
        RuntimeError: A tensor does not fit; the message names it. Or a gradient behind GELU.
    """
    if is_native(a.dtype, a.device.type):
        out: Tensor = torch.ops.megacore.gemm(a, b, bias, residual, gelu, wide)
        return out
    return _reference(a, b, bias, residual, gelu, wide)


def matmul_reference(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    wide: bool = False,
) -> Tensor:
    """`matmul` in plain PyTorch, in float32 or the wider dtype of a."""
    dtype = a.dtype
    a, b = _widened(a), _widened(b)
    out = a @ b
    if bias is not None:
        out = out + bias
    if gelu:
        out = F.gelu(out, approximate="tanh")
    if residual is not None:
        out = out + residual
    return out if wide else out.to(dtype)


def matmul_add_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, without a temporary of its size where a library can do that.

    Args:
        total: [M, N] or a batch, any floating dtype, contiguous; changed.
        a: [M, K] or a batch; one of its last two strides is 1.
        b: [K, N] or a batch, dtype of a; the same.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    same = total.dtype == a.dtype
    if not same and total.dtype == torch.float32 and is_native(a.dtype, a.device.type):
        torch.ops.megacore.gemm_add_(total, a, b)
    elif same and total.dtype in _WIDE and total.dim() == 2:
        total.addmm_(a, b)
    else:
        _reference_add_(total, a, b)


def grouped_matmul(a: Tensor, b: Tensor, counts: list[int]) -> Tensor:
    """Products of successive groups of rows, each with a matrix of its own.

    Args:
        a: [M, K] floating point; rows of group 0 first.
        b: [G, K, N] dtype of a.
        counts: Rows of each of the G groups; their sum is M.

    Returns:
        [M, N] dtype of a.

    Raises:
        RuntimeError: The groups do not cover the rows, or a tensor does not fit.
    """
    if a.dim() != 2 or b.dim() != 3 or len(counts) != b.shape[0] or sum(counts) != a.shape[0]:
        raise RuntimeError(
            f"expected a [M, K], b [G, K, N] and G counts with sum M, found a: {list(a.shape)}, "
            f"b: {list(b.shape)}, counts: {counts}"
        )
    parts = [matmul(rows, matrix) for rows, matrix in zip(a.split(counts), b, strict=True)]
    return torch.cat(parts)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _reference(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    wide: bool,
) -> Tensor:
    """PyTorch's product in the dtype that it is given."""
    if gelu or wide or residual is not None:
        return matmul_reference(a, b, bias=bias, residual=residual, gelu=gelu, wide=wide)
    if bias is None:
        return a @ b
    return torch.addmm(bias, a, b) if a.dim() == 2 else torch.baddbmm(bias, a, b)


def _reference_add_(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.add_(matmul(a, b))


def _fake(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    wide: bool,
) -> Tensor:
    dtype = torch.float32 if wide and a.dtype != torch.float64 else a.dtype
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, _, _, ctx.gelu, _ = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.gelu:
        raise RuntimeError("gemm: no gradient behind gelu: what it would need is not kept")
    a, b = ctx.saved_tensors
    need_a, need_b, need_bias, need_residual, *_ = ctx.needs_input_grad
    dout = dout.to(a.dtype).contiguous()
    da = matmul(dout, b.transpose(-1, -2)) if need_a else None
    db = matmul(a.transpose(-1, -2), dout) if need_b else None
    dbias = _widened(dout).flatten(0, -2).sum(0).to(dout.dtype) if need_bias else None
    return da, db, dbias, dout if need_residual else None, None, None


library.define(
    "gemm(Tensor a, Tensor b, Tensor? bias, Tensor? residual, bool gelu, bool wide) -> Tensor",
    reference=_reference,
    fake=_fake,
)
library.define(
    "gemm_add_(Tensor(a!) total, Tensor a, Tensor b) -> ()",
    reference=_reference_add_,
    fake=lambda total, a, b: None,
)
library.define("gemm_is_native(Tensor x) -> bool", reference=lambda x: False, fake=lambda x: False)
library.register_autograd("gemm", _backward, setup_context=_setup_context)

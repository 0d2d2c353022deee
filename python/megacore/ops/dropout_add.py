"""Dropout of a branch and the addition of the residual stream, in one pass and without a mask.

Which elements are kept is a function of a seed and the element's number, the same on every device
and in the plain-PyTorch reference: backward draws them again. The kernels are
`csrc/kernels/dropout_add.*`.
Source: Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel Random Numbers: As Easy as 1,
2, 3", 2011 (Philox 4x32, 10 rounds).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacore.ops import library

_LEVELS = 1 << 24
_WORD = (1 << 32) - 1


def dropout_add(x: Tensor, residual: Tensor | None, *, drop: float, seed: int) -> Tensor:
    """residual + dropout(x), or dropout(x) alone.

    Args:
        x: [...] float32, bfloat16 or float16; float64 takes the reference.
        residual: [...] dtype of x, or None.
        drop: Probability of a zero, rounded to a multiple of 2^-24; what is kept is divided by the
            probability of that.
        seed: Number of the random stream, a signed 64-bit integer.

    Returns:
        [...] in the dtype of x.

    Raises:
        RuntimeError: A tensor or the probability does not fit; the message names it.
    """
    if x.dtype == torch.float64:
        return dropout_add_reference(x, residual, drop=drop, seed=seed)
    if residual is not None:
        residual = residual.contiguous()
    out: Tensor = torch.ops.megacore.dropout_add(x.contiguous(), residual, drop, seed)
    return out


def dropout_add_reference(x: Tensor, residual: Tensor | None, *, drop: float, seed: int) -> Tensor:
    """`dropout_add` in plain PyTorch, in float32 or the wider dtype of x."""
    return _reference(x, residual, drop, seed)


def random_words(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `count` numbers of a stream, [count] int64 in [0, 2^32).

    Args:
        count: How many.
        seed: Number of the stream.
        device: Where.
    """
    counters = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    a, b = counters & _WORD, counters >> 32
    c = d = torch.zeros_like(counters)
    key_low, key_high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        first_high, first_low = _product(a, 0xD2511F53)
        second_high, second_low = _product(c, 0xCD9E8D57)
        a, b, c, d = second_high ^ b ^ key_low, second_low, first_high ^ d ^ key_high, first_low
        key_low = (key_low + 0x9E3779B9) & _WORD
        key_high = (key_high + 0xBB67AE85) & _WORD
    return torch.stack((a, b, c, d), dim=1).flatten()[:count]


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of x * factor, in steps that int64 holds."""
    low_part = x * (factor & 0xFFFF)
    high_part = x * (factor >> 16)
    total = low_part + ((high_part & 0xFFFF) << 16)
    return (high_part >> 16) + (total >> 32), total & _WORD


def _reference(x: Tensor, residual: Tensor | None, drop: float, seed: int) -> Tensor:
    if not 0.0 <= drop <= 1.0:
        raise RuntimeError(f"drop: expected a probability, found {drop}")
    if residual is not None and residual.shape != x.shape:
        raise RuntimeError(f"expected shape {list(x.shape)}, found residual: {residual.shape}")
    threshold = int(drop * _LEVELS + 0.5)
    scale = 0.0 if threshold >= _LEVELS else 1.0 / (1.0 - threshold / _LEVELS)
    dropped = ((random_words(x.numel(), seed, x.device) >> 8) < threshold).view(x.shape)
    wide = x if x.dtype == torch.float64 else x.float()
    kept = (wide * scale).masked_fill(dropped, 0.0)
    return (kept if residual is None else residual + kept).to(x.dtype)


def _fake(x: Tensor, residual: Tensor | None, drop: float, seed: int) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, residual, ctx.drop, ctx.seed = inputs
    ctx.has_residual = residual is not None


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    dx = torch.ops.megacore.dropout_add(dout.contiguous(), None, ctx.drop, ctx.seed)
    return dx, dout if ctx.has_residual else None, None, None


library.define(
    "dropout_add(Tensor x, Tensor? residual, float drop, int seed) -> Tensor",
    reference=_reference,
    fake=_fake,
)
library.register_autograd("dropout_add", _backward, setup_context=_setup_context)

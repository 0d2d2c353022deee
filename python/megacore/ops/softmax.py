"""Softmax of attention scores, with their scale and their masks in the same pass.

The kernels are `csrc/kernels/softmax.*`. Scores and weights keep their dtype; between them is
float32.
Source: Shoeybi et al., "Megatron-LM", 2019 (fused scale, mask and softmax).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megacore.ops import library


def softmax(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool = False,
    offset: int = 0,
    window: int | None = None,
) -> Tensor:
    """Attention weights softmax(scale * x) over the columns that a row sees.

    Args:
        x: [B, H, Q, K] scores, float32, bfloat16 or float16; float64 takes the reference.
        mask: bool, [B or 1, H or 1, Q or 1, K], true where a column is hidden; or None.
        scale: Factor of the scores.
        causal: Row i sees column j only where j <= i + offset.
        offset: How many columns lie in front of that of row 0.
        window: With `causal`, a row sees only the last so many of its columns.

    Returns:
        [B, H, Q, K] in the dtype of x; zeros where hidden, and in rows that see nothing.

    Raises:
        RuntimeError: A tensor does not fit; the message names it.
    """
    if x.dtype == torch.float64:
        return softmax_reference(x, mask, scale=scale, causal=causal, offset=offset, window=window)
    if mask is not None and mask.stride(-1) != 1:
        mask = mask.contiguous()
    out: Tensor = torch.ops.megacore.softmax_forward(
        x.contiguous(), mask, scale, causal, offset, window or 0
    )
    return out


def softmax_reference(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool = False,
    offset: int = 0,
    window: int | None = None,
) -> Tensor:
    """`softmax` in plain PyTorch, in float32 or the wider dtype of x."""
    return _reference(x, mask, scale, causal, offset, window or 0)


def seen(queries: int, keys: int, offset: int, window: int, device: torch.device) -> Tensor:
    """Which columns the rows of causal scores see.

    Args:
        queries: Number of rows.
        keys: Number of columns.
        offset: As in `softmax`.
        window: As in `softmax`; 0 for none.
        device: Where.

    Returns:
        [queries, keys] bool.
    """
    last = torch.arange(queries, device=device)[:, None] + offset
    columns = torch.arange(keys, device=device)
    visible = columns <= last
    return visible & (columns > last - window) if window else visible


def _reference(
    x: Tensor, mask: Tensor | None, scale: float, causal: bool, offset: int, window: int
) -> Tensor:
    if window and not causal:
        raise RuntimeError("window: only with causal")
    scores = (x if x.dtype == torch.float64 else x.float()) * scale
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    if causal:
        visible = seen(x.shape[-2], x.shape[-1], offset, window, x.device)
        scores = scores.masked_fill(~visible, float("-inf"))
    # A row that sees nothing is minus infinity throughout: its maximum is replaced by 0.
    largest = scores.detach().amax(-1, keepdim=True)
    powers = torch.exp(scores - largest.masked_fill(largest == float("-inf"), 0.0))
    total = powers.sum(-1, keepdim=True)
    return (powers / total.masked_fill(total == 0.0, 1.0)).to(x.dtype)


def _reference_backward(
    dy: Tensor, y: Tensor, scale: float, causal: bool, offset: int, window: int
) -> Tensor:
    wide, gradient = y.float(), dy.float()
    mean = (wide * gradient).sum(-1, keepdim=True)
    return (wide * scale * (gradient - mean)).to(y.dtype)


def _fake(
    x: Tensor, mask: Tensor | None, scale: float, causal: bool, offset: int, window: int
) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(
    dy: Tensor, y: Tensor, scale: float, causal: bool, offset: int, window: int
) -> Tensor:
    return torch.empty_like(y)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[2:]
    ctx.save_for_backward(output)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    dx = torch.ops.megacore.softmax_backward(dy.contiguous(), y, *ctx.settings)
    return dx, None, None, None, None, None


library.define(
    "softmax_forward(Tensor x, Tensor? mask, float scale, bool causal, int offset, int window)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
)
library.define(
    "softmax_backward(Tensor dy, Tensor y, float scale, bool causal, int offset, int window)"
    " -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
)
library.register_autograd("softmax_forward", _backward, setup_context=_setup_context)

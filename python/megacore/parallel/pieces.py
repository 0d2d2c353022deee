"""Products of a linear layer in pieces, so that communication runs beside them.

The tokens of every process are cut into a few pieces; while one piece is multiplied, the next is
being gathered, or the one before is being summed. All collectives are those of the plain form, in
the same order on every process, and sums are taken in the same order in every run: results are
bitwise reproducible. Pieces change only which rows go through one product together.

Source: Wang et al., "Overlap Communication with Dependent Computation via Decomposition in Large
Deep Learning Models" (ASPLOS 2023), section 4; here with collectives of pieces instead of a ring.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megacore.parallel.collectives import divided, joined, start_all_gather, start_reduce_scatter
from megacore.parallel.groups import Group

# More pieces hide more of the first and last transfer, but make the products thinner.
NUM_PIECES = 4
SEQUENCE = 1

Multiply = Callable[[Tensor], Tensor]


def gather_product(
    x: Tensor, group: Group, multiply: Multiply, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """`multiply` of the gathered sequence.

    Args:
        x: [B, s, I], this process's part of the sequence.
        group: Members, in the order of their parts.
        multiply: Maps [..., I] to [..., O], row by row.
        keep: Return the gathered sequence too.

    Returns:
        [B, size * s, O], and [B, size * s, I] or None.
    """
    cuts = _cuts(x.shape[SEQUENCE])
    pending = [start_all_gather(piece[None], group, 0) for piece in x.split(cuts, SEQUENCE)]
    product: Tensor | None = None
    gathered = x.new_empty((group.size, *x.shape)) if keep else None
    start = 0
    for width, finish in zip(cuts, pending, strict=True):
        piece = finish()
        part = multiply(piece)
        if product is None:
            shape = (group.size, *x.shape[:-1], part.shape[-1])
            product = part.new_empty(shape)
        product[:, :, start : start + width] = part
        if gathered is not None:
            gathered[:, :, start : start + width] = piece
        start += width
    assert product is not None
    return joined(product, SEQUENCE), None if gathered is None else joined(gathered, SEQUENCE)


def product_scatter(x: Tensor, group: Group, multiply: Multiply) -> Tensor:
    """This process's part of the sequence of the sum, over the processes, of `multiply(x)`.

    Args:
        x: [B, size * s, I].
        group: Members, in the order of their parts.
        multiply: Maps [..., I] to [..., O], row by row.

    Returns:
        [B, s, O].
    """
    parts = divided(x, group.size, SEQUENCE)
    cuts = _cuts(parts.shape[2])
    pending = [
        start_reduce_scatter(multiply(piece), group, 0) for piece in parts.split(cuts, dim=2)
    ]
    return torch.cat([finish()[0] for finish in pending], SEQUENCE)


def _cuts(length: int) -> list[int]:
    """Tokens of each piece; all processes have equally many tokens."""
    count = min(NUM_PIECES, length)
    return [(length * (i + 1)) // count - (length * i) // count for i in range(count)]

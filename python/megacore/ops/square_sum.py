"""Sum of the squares of a flat buffer: the norm of gradients, and whether all are finite.

The kernel is `csrc/kernels/square_sum.*`. The result does not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacore.ops import library

# A plain reduction of a whole buffer is cut into as many pieces as there are threads, so its last
# bits depend on them. Rows of this length are each reduced by one thread; the row results, in
# float64, are reduced the same way until few enough are left for one thread.
_ROW = 2048


def square_sum(x: Tensor) -> Tensor:
    """x[0]^2 + x[1]^2 + ..., [] float64; not finite if any element is not.

    Args:
        x: [N] contiguous. float32, bfloat16 or float16: the kernel, for which a magnitude above
            1.8e19 is infinite. float64 takes the reference.

    Raises:
        RuntimeError: The tensor does not fit; the message names it.
    """
    if x.dtype == torch.float64:
        return square_sum_reference(x)
    total: Tensor = torch.ops.megacore.square_sum(x)
    return total[0]


def square_sum_reference(x: Tensor) -> Tensor:
    """`square_sum` in plain PyTorch, for any floating-point dtype."""
    if x.dtype != torch.float64:
        x = x.float()
    while x.numel() > _ROW:
        whole = x.numel() // _ROW * _ROW
        rows = torch.linalg.vector_norm(x[:whole].view(-1, _ROW), dim=1).double()
        rest = torch.linalg.vector_norm(x[whole:].double())
        x = torch.cat([rows, rest.view(1)])
    return torch.linalg.vector_norm(x.double()).square()


def _reference_op(x: Tensor) -> Tensor:
    if x.dim() != 1:
        raise RuntimeError(f"x: expected [N], found {list(x.shape)}")
    return square_sum_reference(x).view(1)


def _fake_op(x: Tensor) -> Tensor:
    return x.new_empty(1, dtype=torch.float64)


library.define("square_sum(Tensor x) -> Tensor", reference=_reference_op, fake=_fake_op)

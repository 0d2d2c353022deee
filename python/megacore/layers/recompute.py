"""Activation recompute: a part of a model runs again in backward instead of keeping what it made.

`recomputed` is the form for one process; modules hold it as an attribute so that a parallel run
can put another in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Recompute(Protocol):
    """`run(*inputs)`, of whose activations only the inputs are kept for backward."""

    def __call__(self, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Run it now, and again in backward."""


def recomputed(run: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`run(*inputs)`, of whose activations only the inputs are kept for backward.

    The random state of the first time is restored for the second, so that dropout and results are
    bitwise those without recompute.
    """
    result = checkpoint(run, *inputs, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result

"""The training loop and the parts it drives.

`pretrain` is loaded on first use, so that reading the settings (`megacore.training.config`) does
not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacore.training.pretrain import pretrain

__all__ = ["pretrain"]


def __getattr__(name: str) -> object:
    # A submodule of the same name becomes an attribute once it is imported; the function wins.
    if name == "pretrain":
        from megacore.training.pretrain import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

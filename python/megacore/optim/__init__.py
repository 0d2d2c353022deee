"""Optimizers over flat buffers, loss scaling, schedules and micro-batch counts.

The names below are loaded on first use, so that reading the settings (`megacore.optim.config`)
does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacore.optim.build import build_optimizer
    from megacore.optim.microbatches import BatchSize, MicrobatchCalculator
    from megacore.optim.optimizer import Optimizer, StepResult
    from megacore.optim.schedule import ParamScheduler, Rates

__all__ = [
    "BatchSize",
    "MicrobatchCalculator",
    "Optimizer",
    "ParamScheduler",
    "Rates",
    "StepResult",
    "build_optimizer",
]

_HOME = {
    "BatchSize": "megacore.optim.microbatches",
    "MicrobatchCalculator": "megacore.optim.microbatches",
    "Optimizer": "megacore.optim.optimizer",
    "ParamScheduler": "megacore.optim.schedule",
    "Rates": "megacore.optim.schedule",
    "StepResult": "megacore.optim.optimizer",
    "build_optimizer": "megacore.optim.build",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Saving and loading: published atomically, verified on load, no pickle.

The names below are loaded on first use, so that reading the settings
(`megacore.checkpoint.config`) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacore.checkpoint.layout import find_checkpoint
    from megacore.checkpoint.load import Checkpoint
    from megacore.checkpoint.open import load_checkpoint, open_checkpoint
    from megacore.checkpoint.resume import ResumePlan, decide
    from megacore.checkpoint.rng import gather_rng, restore_rng
    from megacore.checkpoint.save import SaveDirectory, save_checkpoint
    from megacore.checkpoint.vocabulary import VocabularyRows

__all__ = [
    "Checkpoint",
    "ResumePlan",
    "SaveDirectory",
    "VocabularyRows",
    "decide",
    "find_checkpoint",
    "gather_rng",
    "load_checkpoint",
    "open_checkpoint",
    "restore_rng",
    "save_checkpoint",
]

_HOME = {
    "Checkpoint": "megacore.checkpoint.load",
    "ResumePlan": "megacore.checkpoint.resume",
    "SaveDirectory": "megacore.checkpoint.save",
    "VocabularyRows": "megacore.checkpoint.vocabulary",
    "decide": "megacore.checkpoint.resume",
    "find_checkpoint": "megacore.checkpoint.layout",
    "gather_rng": "megacore.checkpoint.rng",
    "load_checkpoint": "megacore.checkpoint.open",
    "open_checkpoint": "megacore.checkpoint.open",
    "restore_rng": "megacore.checkpoint.rng",
    "save_checkpoint": "megacore.checkpoint.save",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Datasets, indices, samplers, tokenizers and text preparation.

Names are imported when they are used: the tools that prepare text need no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megacore.data.blended_dataset import BlendedDataset
    from megacore.data.datasets import Datasets, build_datasets
    from megacore.data.gpt_dataset import GPTDataset, Sample
    from megacore.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter, dataset_exists
    from megacore.data.loader import Batch, build_loader
    from megacore.data.split import split_matrix, split_ranges

__all__ = [
    "Batch",
    "BlendedDataset",
    "Datasets",
    "GPTDataset",
    "IndexedDataset",
    "IndexedDatasetWriter",
    "Sample",
    "build_datasets",
    "build_loader",
    "dataset_exists",
    "split_matrix",
    "split_ranges",
]

_HOME = {
    "Batch": "loader",
    "BlendedDataset": "blended_dataset",
    "Datasets": "datasets",
    "GPTDataset": "gpt_dataset",
    "IndexedDataset": "indexed_dataset",
    "IndexedDatasetWriter": "indexed_dataset",
    "Sample": "gpt_dataset",
    "build_datasets": "datasets",
    "build_loader": "loader",
    "dataset_exists": "indexed_dataset",
    "split_matrix": "split",
    "split_ranges": "split",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

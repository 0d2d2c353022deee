"""Small indexed datasets and a tokenizer that only has an identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megacore.data.config import DataConfig
from megacore.data.indexed_dataset import IndexedDatasetWriter
from megacore.errors import DataError

EOD = 99


class FakeTokenizer:
    def __init__(self, eod: int | None = EOD, pad: int = -1) -> None:
        self._eod, self.pad = eod, pad

    @property
    def eod(self) -> int:
        if self._eod is None:
            raise DataError("this vocabulary has no end-of-document token")
        return self._eod

    def identity(self) -> dict[str, object]:
        return {"class": "FakeTokenizer", "tokenizer_path": [None], "vocab_size": "100"}


def write_documents(
    prefix: Path, lengths: list[int], *, seed: int = 0, dtype: type = np.uint16
) -> list[np.ndarray]:
    """Documents of random ids below EOD that end with EOD."""
    rng = np.random.default_rng(seed)
    documents = []
    for length in lengths:
        ids = rng.integers(0, EOD, length).astype(dtype)
        if length:
            ids[-1] = EOD
        documents.append(ids)
    with IndexedDatasetWriter(str(prefix), dtype) as writer:
        writer.add_documents(np.concatenate(documents), lengths)
    return documents


def config(**settings: object) -> DataConfig:
    return DataConfig(**{"seq_length": 8, "num_workers": 0, **settings}).resolved()

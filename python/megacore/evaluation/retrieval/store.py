"""Vectors of evidence in a file, made in pieces that a restart finds, and searched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from megacore.durable import replace_file
from megacore.errors import DataError

_ROWS_AT_ONCE = 1 << 16


class EmbeddingStore:
    """Vectors by the id of what they belong to.

    Attributes:
        ids: int64 [n].
        vectors: float16 [n, H].
    """

    def __init__(self, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        self.ids = ids
        self.vectors = vectors

    @classmethod
    def load(cls, path: Path) -> EmbeddingStore:
        """Reads a store.

        Raises:
            DataError: There is none, or it is damaged.
        """
        try:
            tensors = load_file(path)
            return cls(tensors["ids"], tensors["vectors"])
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no such file; make it with tools/create_doc_index.py"
            ) from error
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"{path}: not a file of vectors: {error}") from error

    def save(self, path: Path) -> None:
        """Writes the store in one step; what was there before is replaced."""
        replace_file(path, save({"ids": self.ids, "vectors": self.vectors}))

    def search(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The vectors with the largest inner products, by faiss where that is installed.

        Args:
            queries: float32 [q, H].
            count: How many; at most n.

        Returns:
            Ids [q, count] and products [q, count], the largest first.
        """
        count = min(count, len(self.ids))
        faiss = _faiss()
        if faiss is not None:
            index = faiss.IndexFlatIP(self.vectors.shape[1])
            for rows in self._rows():
                index.add(self.vectors[rows].astype(np.float32))
            scores, places = index.search(queries, count)
            return self.ids[places], scores
        best = torch.empty(len(queries), 0)
        where = torch.empty(len(queries), 0, dtype=torch.int64)
        wanted = torch.from_numpy(queries)
        for rows in self._rows():
            part = torch.from_numpy(self.vectors[rows].astype(np.float32))
            places = torch.arange(rows.start, rows.start + len(part)).expand(len(queries), -1)
            best, order = torch.cat([best, wanted @ part.T], 1).topk(
                min(count, best.shape[1] + len(part)), dim=1
            )
            where = torch.cat([where, places], 1).gather(1, order)
        return self.ids[where.numpy()], best.numpy()

    def _rows(self) -> Iterator[slice]:
        for first in range(0, len(self.ids), _ROWS_AT_ONCE):
            yield slice(first, first + _ROWS_AT_ONCE)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError:
        return None


class PieceFolder:
    """Finished pieces of a store beside it, by the number of their first row.

    Args:
        path: The store.
        identity: What the vectors depend on; pieces of another identity are not used.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._folder = path.with_name(path.name + "_tmp")
        self._identity = identity

    def get(self, first: int) -> EmbeddingStore | None:
        """A piece that is there, complete and of this identity."""
        path = self._path(first)
        return EmbeddingStore.load(path) if path.exists() else None

    def put(self, first: int, piece: EmbeddingStore) -> None:
        """Keeps a piece."""
        self._folder.mkdir(parents=True, exist_ok=True)
        piece.save(self._path(first))

    def remove(self) -> None:
        """Takes all pieces away, those of other identities too."""
        if self._folder.is_dir():
            for path in self._folder.glob("*.safetensors"):
                path.unlink()
            self._folder.rmdir()

    def _path(self, first: int) -> Path:
        return self._folder / f"{self._identity}-{first}.safetensors"

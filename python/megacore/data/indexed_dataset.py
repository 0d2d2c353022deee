"""Indexed datasets: PREFIX.bin with the tokens and PREFIX.idx that says where they are.

A dataset is a list of sequences; a document is a consecutive range of sequences. This module
imports neither torch nor anything of the training code, so that data tools start quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from megacore import _C
from megacore.errors import DataError

_UINT16_VOCABULARY = 65500


def token_dtype(vocab_size: int | None) -> np.dtype[Any]:
    """The item type that the writer of a text dataset uses.

    Args:
        vocab_size: Size of the vocabulary, None when it is not known.

    Returns:
        uint16 when every id is known to fit (vocab_size < 65500), else int32.
    """
    small = vocab_size is not None and vocab_size < _UINT16_VOCABULARY
    return np.dtype(np.uint16 if small else np.int32)


class IndexedDataset:
    """Random access to the sequences of PREFIX.bin / PREFIX.idx, 64-bit throughout.

    Args:
        prefix: Path of the pair without its extension.
        multimodal: The .idx ends with one mode per sequence (0 text, 1 image). The file itself
            does not say so.
        mmap: Map the .bin file; otherwise every access reads from it.
        validate: Check every entry of the .idx; False checks its header, sizes and last entries.

    Raises:
        DataError: A file is missing, truncated or inconsistent; names file, offset, expected and
            found value.
    """

    def __init__(
        self, prefix: str, multimodal: bool = False, mmap: bool = True, *, validate: bool = True
    ) -> None:
        if prefix.startswith("s3://"):
            raise DataError(f"{prefix}: reading datasets from S3 is not supported; copy them first")
        self._reader = _C.data.IndexedReader(
            prefix, multimodal=multimodal, mmap=mmap, validate=validate
        )

    @property
    def reader(self) -> _C.data.IndexedReader:
        """The C++ reader, for functions of `megacore._C.data`."""
        return self._reader

    @property
    def prefix(self) -> str:
        """Path of the pair without its extension."""
        return self._reader.prefix

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the items."""
        return self._reader.dtype

    @property
    def multimodal(self) -> bool:
        """Whether there is a mode per sequence."""
        return self._reader.multimodal

    @property
    def sequence_lengths(self) -> NDArray[np.int32]:
        """int32 [S]: items per sequence (a read-only, unaligned view of the file)."""
        return self._reader.sequence_lengths

    @property
    def byte_offsets(self) -> NDArray[np.int64]:
        """int64 [S]: where every sequence starts in the .bin file."""
        return self._reader.byte_offsets

    @property
    def document_indices(self) -> NDArray[np.int64]:
        """int64 [documents + 1]: sequence numbers at which documents begin, and lastly S."""
        return self._reader.document_indices

    @property
    def sequence_modes(self) -> NDArray[np.int8] | None:
        """int8 [S] of a multimodal dataset, else None."""
        return self._reader.sequence_modes

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.document_indices) - 1

    @property
    def num_tokens(self) -> int:
        """Number of items in the .bin file."""
        return self._reader.num_items

    def __len__(self) -> int:
        return self._reader.num_sequences

    def get(self, index: int, offset: int = 0, length: int | None = None) -> NDArray[Any]:
        """Items of one sequence.

        Args:
            index: Sequence number; negative counts from the end.
            offset: First item.
            length: Number of items, None for all that follow `offset`.

        Returns:
            A new array [length] of the dataset's type.

        Raises:
            DataError: The sequence does not have these items.
        """
        position = self._position(index)
        if length is None:
            length = max(int(self.sequence_lengths[position]) - offset, 0)
        return self._reader.read(position, offset, length)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self.get(i) for i in range(*index.indices(len(self)))]
        return self.get(index)

    def document(self, index: int) -> list[NDArray[Any]]:
        """The sequences of document `index`.

        Raises:
            IndexError: There is no such document.
        """
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents} in {self.prefix}")
        first, last = self.document_indices[index : index + 2]
        return self[int(first) : int(last)]

    def _position(self, index: int) -> int:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sequence {index} of {len(self)} in {self.prefix}")
        return position


class IndexedDatasetWriter:
    """Writes PREFIX.bin / PREFIX.idx in bounded memory; both appear only with `finalize()`.

    As a context manager it finalizes, or removes its unfinished files when an exception passes.
    A dataset that already has the prefix stays readable until the new one replaces it. A process
    that is killed leaves the old dataset, or the new one, never a mixture.

    Args:
        prefix: Path of the pair without its extension; its folder must exist.
        dtype: Item type: uint8, int8, int16, int32, int64, float64, float32 or uint16.
        multimodal: Store one mode per sequence.

    Raises:
        DataError: The files cannot be created, or another process is writing this prefix.
    """

    def __init__(self, prefix: str, dtype: DTypeLike, *, multimodal: bool = False) -> None:
        self._writer = _C.data.IndexedWriter(prefix, np.dtype(dtype), multimodal=multimodal)
        self._dtype = np.dtype(dtype)

    @property
    def prefix(self) -> str:
        """Path of the pair without its extension."""
        return self._writer.prefix

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the items."""
        return self._dtype

    @property
    def num_sequences(self) -> int:
        """Sequences added so far."""
        return self._writer.num_sequences

    @property
    def num_documents(self) -> int:
        """Documents ended so far."""
        return self._writer.num_documents

    def add_sequence(self, tokens: ArrayLike, *, mode: int = 0) -> None:
        """Appends one sequence to the open document.

        Args:
            tokens: [n] items.
            mode: Kind of the sequence in a multimodal dataset.

        Raises:
            DataError: An item does not fit the type, or the disk is full.
        """
        items = self._items(tokens)
        modes = [mode] if self._writer.multimodal else []
        self._writer.add_sequences(items, [len(items)], modes)

    def end_document(self) -> None:
        """Closes the open document; without sequences since the last one it is an empty one."""
        self._writer.end_document()

    def add_document(
        self,
        tokens: ArrayLike,
        sequence_lengths: Sequence[int] | None = None,
        *,
        modes: Sequence[int] | None = None,
    ) -> None:
        """Appends one document.

        Args:
            tokens: [n] items of all its sequences.
            sequence_lengths: Items per sequence; None: one sequence, or no sequence for n = 0.
            modes: One per sequence, in a multimodal dataset.

        Raises:
            DataError: Lengths do not add up to n, an item does not fit, or the disk is full.
        """
        items = self._items(tokens)
        if sequence_lengths is None:
            sequence_lengths = [len(items)] if len(items) else []
        self.add_documents(items, sequence_lengths, [len(sequence_lengths)], modes=modes)

    def add_documents(
        self,
        tokens: ArrayLike,
        sequence_lengths: ArrayLike,
        sequences_per_document: ArrayLike | None = None,
        *,
        modes: ArrayLike | None = None,
    ) -> None:
        """Appends many documents at once.

        Args:
            tokens: [n] items of all sequences, one after the other.
            sequence_lengths: [s] items per sequence.
            sequences_per_document: [d] sequences per document, 0 for an empty one; None: every
                sequence is a document of its own.
            modes: [s] modes in a multimodal dataset.

        Raises:
            DataError: The counts do not add up, an item does not fit, or the disk is full.
        """
        lengths = np.asarray(sequence_lengths, dtype=np.int64)
        if sequences_per_document is None:
            per_document = np.ones(len(lengths), dtype=np.int64)
        else:
            per_document = np.asarray(sequences_per_document, dtype=np.int64)
        if modes is None:
            modes = np.zeros(len(lengths) if self._writer.multimodal else 0, dtype=np.int8)
        self._writer.add_documents(
            self._items(tokens), lengths, per_document, np.asarray(modes, dtype=np.int8)
        )

    def append(self, prefix: str) -> None:
        """Appends every document of another indexed dataset.

        Raises:
            DataError: It is damaged, or its item type differs.
        """
        self._writer.append(prefix)

    def finalize(self) -> None:
        """Flushes both files to disk and publishes them under their final names.

        Raises:
            DataError: A document is still open, or the disk is full.
        """
        self._writer.finalize()

    def abandon(self) -> None:
        """Removes the unfinished files; does nothing after `finalize()`."""
        self._writer.abandon()

    def __enter__(self) -> IndexedDatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.abandon()

    def _items(self, tokens: ArrayLike) -> NDArray[Any]:
        """`tokens` as a contiguous array [n] of the writer's type, checked to fit."""
        items = np.asarray(tokens)
        if items.ndim != 1:
            raise DataError(f"{self.prefix}: expected tokens of shape [n], found {items.shape}")
        if items.dtype == self._dtype or not len(items):
            return np.ascontiguousarray(items, dtype=self._dtype)
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            if items.dtype.kind not in "iu":
                raise DataError(
                    f"{self.prefix}: expected integer tokens for {self._dtype}, found {items.dtype}"
                )
            low, high = int(items.min()), int(items.max())
            if low < limits.min or high > limits.max:
                bad = low if low < limits.min else high
                raise DataError(
                    f"{self.prefix}: token {bad} does not fit the item type {self._dtype} "
                    f"({limits.min} to {limits.max})"
                )
        elif items.dtype.kind not in "iuf":
            raise DataError(f"{self.prefix}: expected numbers, found {items.dtype}")
        return np.ascontiguousarray(items, dtype=self._dtype)


def dataset_exists(prefix: str) -> bool:
    """Whether both files of the prefix are there, or a killed writer had committed them."""
    return _C.data.dataset_exists(prefix)

"""Datasets whose documents are divided into sentences, and the samples that are made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore import _C
from megacore.data.config import DataConfig
from megacore.data.index_cache import Arrays, ArraySpec, IndexFiles
from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.kinds import Part
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError

_LOGGER = logging.getLogger("megacore.data")

# A document with a longer sentence among others is not used.
LONGEST_SENTENCE = 512

_MOCK_SENTENCES = 100_000
_MOCK_LONGEST = 60
_MOCK_SENTENCES_OF_DOCUMENT = 40

# Maps are announced while they are made, every so many rows.
_ROWS_PER_MESSAGE = 50_000_000


@dataclass(frozen=True)
class Sentences:
    """An opened dataset of sentences.

    Attributes:
        name: For messages.
        path: Prefix of the dataset; None for made-up data.
        source: Reads tokens.
        lengths: int32 [sentences].
        boundaries: int64 [documents + 1], sentences at which documents begin.
    """

    name: str
    path: str | None
    source: _C.data.TokenSource
    lengths: NDArray[np.int32]
    boundaries: NDArray[np.int64]

    @property
    def num_elements(self) -> int:
        """Documents, which a split divides."""
        return len(self.boundaries) - 1

    @property
    def is_wide(self) -> bool:
        """Whether sentence numbers need 64 bits."""
        return len(self.lengths) > np.iinfo(np.uint32).max


def open_sentences(prefix: str, data: DataConfig, *, min_sentences: int, model: str) -> Sentences:
    """The sentences of an indexed dataset.

    Args:
        prefix: Of its files.
        data: How to read them.
        min_sentences: That a sample needs.
        model: For messages.

    Raises:
        DataError: The files are missing or damaged, or hold whole documents.
    """
    dataset = IndexedDataset(prefix, mmap=data.mmap_bin_files)
    lengths, boundaries = dataset.sequence_lengths, dataset.document_indices
    if len(lengths) and int(np.diff(boundaries).max()) < 2:
        longest = int(lengths.max())
        if min_sentences > 1 or longest > LONGEST_SENTENCE:
            raise DataError(
                f"{prefix}: this is a dataset of whole documents (each is one sequence, the "
                f"longest of {longest} tokens), but {model} is trained on sentences; prepare it "
                "with --split-sentences (megacore preprocess), which writes PREFIX_KEY_sentence"
            )
    return Sentences(
        name=f"dataset {dataset.prefix}",
        path=dataset.prefix,
        source=_C.data.token_source(dataset.reader),
        lengths=lengths,
        boundaries=boundaries,
    )


def mock_sentences(end: int) -> Sentences:
    """Made-up sentences 1, 2, 3, ..., `end` of random lengths, the same on every machine."""
    random = np.random.default_rng(0)
    lengths = random.integers(4, _MOCK_LONGEST, size=_MOCK_SENTENCES, dtype=np.int32)
    sizes = random.integers(2, _MOCK_SENTENCES_OF_DOCUMENT, size=_MOCK_SENTENCES)
    ends = np.cumsum(sizes)
    boundaries = np.concatenate([[0], ends[ends < _MOCK_SENTENCES], [_MOCK_SENTENCES]])
    return Sentences(
        name="mock data",
        path=None,
        source=_C.data.mock_source(lengths, end),
        lengths=lengths,
        boundaries=boundaries.astype(np.int64),
    )


def mapping_request(
    sentences: Sentences, part: Part, *, max_length: int, min_sentences: int
) -> _C.data.MappingRequest:
    """What is asked of the part of a dataset, for the C++ functions."""
    return _C.data.MappingRequest(
        f"{sentences.name}, {part.split} split (documents {part.first} to {part.last})",
        first_document=part.first,
        last_document=part.last,
        num_samples=part.num_samples,
        max_length=max_length,
        min_sentences=min_sentences,
        seed=part.seed % 2**32,
    )


def sentence_config(
    part: Part, tokenizer: Tokenizer, *, sequence_length: int
) -> _C.data.SentenceConfig:
    """Seed and special ids, for the C++ readers."""
    return _C.data.SentenceConfig(
        seed=part.seed % 2**32,
        sequence_length=sequence_length,
        cls=tokenizer.cls,
        sep=tokenizer.sep,
        pad=tokenizer.pad,
    )


def span_map(
    sentences: Sentences,
    part: Part,
    *,
    max_length: int,
    min_sentences: int,
    short_probability: float,
) -> NDArray[Any]:
    """The map of BERT and T5: first sentence, the one behind the last, target length.

    Args:
        sentences: The dataset.
        part: Of it; the identity names the index files.
        max_length: Tokens of a sample, without special ones.
        min_sentences: Of a sample.
        short_probability: Share of the samples with a random, shorter length.
    """
    request = mapping_request(sentences, part, max_length=max_length, min_sentences=min_sentences)
    files = None
    if part.cache is not None:
        files = IndexFiles.describe(part.cache, part.identity, None)
    return find_map(
        sentences,
        files,
        lambda progress: _C.data.map_spans(
            sentences.lengths,
            sentences.boundaries,
            request,
            short_probability=short_probability,
            wide=sentences.is_wide,
            progress=progress,
        ),
        name="sample_index",
        columns=3,
        may_build=part.may_build,
    )


def find_map(
    sentences: Sentences,
    files: IndexFiles | None,
    build: Callable[[Callable[[int], None]], NDArray[Any]],
    *,
    name: str,
    columns: int,
    may_build: bool,
) -> NDArray[Any]:
    """A map of samples, from its file or made now.

    Args:
        sentences: Where the samples lie.
        files: Where the map is stored; None to keep it in memory.
        build: Makes the map; its argument wants to hear how many rows there are.
        name: Of the array among the files.
        columns: Of the map.
        may_build: False: only load what another process has written.

    Returns:
        uint32 [n, columns], uint64 where sentence numbers need it.
    """
    announced = 0

    def progress(rows: int) -> None:
        nonlocal announced
        if rows - announced >= _ROWS_PER_MESSAGE:
            announced = rows
            _LOGGER.warning("%s: %d samples mapped so far", sentences.name, rows)

    def make() -> Arrays:
        return {name: build(progress)}

    if files is None:
        return make()[name]
    dtype = np.dtype(np.uint64 if sentences.is_wide else np.uint32)
    specs = {name: ArraySpec(dtype, (None, columns))}
    return files.load_or_build(specs, make, may_build=may_build)[name]


class SentenceSamples:
    """The samples of one split of one dataset of sentences, in shuffled order.

    Args:
        part: Which part of the dataset, and its identity.
        name: For messages.
        sequence_length: S.
        sample_map: [n, 3] or [n, 4], one row per sample.
        reader: The C++ object that reads samples.
        arrays: Array of a batch -> its shape behind the batch dimension, and its type.
    """

    def __init__(
        self,
        part: Part,
        *,
        name: str,
        sequence_length: int,
        sample_map: NDArray[Any],
        reader: Any,
        arrays: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    ) -> None:
        self.identity = part.identity
        self.name = name
        self.sequence_length = sequence_length
        self.sample_map = sample_map
        self.arrays = dict(arrays)
        self._reader = reader

    def __len__(self) -> int:
        return len(self.sample_map)

    def gather(
        self,
        samples: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        vocab_size: int,
        **arrays: NDArray[Any],
    ) -> None:
        """Fills rows of a batch, without the interpreter's lock.

        Args:
            samples: [n] sample numbers.
            rows: [n] the rows that get them.
            vocab_size: Every id must be smaller.
            **arrays: The arrays of a batch, written.

        Raises:
            DataError: An id is not in the vocabulary, or the map is damaged.
        """
        self._reader.gather(samples, rows, vocab_size=vocab_size, **arrays)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The arrays of one sample, without a batch dimension."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.name}")
        batch = gather_batch(self, [index], vocab_size=2**31)
        return {name: tensor[0] for name, tensor in batch.items()}


def gather_batch(
    dataset: Any, samples: Sequence[int] | NDArray[np.int64], *, vocab_size: int
) -> dict[str, Tensor]:
    """The arrays of a batch of samples.

    Args:
        dataset: `SentenceSamples`, or a `BlendedDataset` of them.
        samples: [b] sample numbers.
        vocab_size: Every id must be smaller.

    Returns:
        Name of the array -> tensor [b, ...], on the host, pinned where there is a GPU.
    """
    chosen = np.asarray(samples, dtype=np.int64)
    pin = torch.cuda.is_available()
    first: SentenceSamples = getattr(dataset, "first", dataset)
    tensors = {
        name: torch.empty((len(chosen), *shape), dtype=dtype, pin_memory=pin)
        for name, (shape, dtype) in first.arrays.items()
    }
    dataset.gather(
        chosen,
        np.arange(len(chosen), dtype=np.int64),
        vocab_size=vocab_size,
        **{name: tensor.numpy() for name, tensor in tensors.items()},
    )
    return tensors

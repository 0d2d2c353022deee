"""Samples for the inverse cloze task: a sentence, and the block of text that it comes from.

Blocks are consecutive sentences of a document, up to the length of a sequence; the title of the
document stands before them. A random sentence is the query; it is mostly taken out of the block.
Source: Lee et al., "Latent Retrieval for Weakly Supervised Open Domain Question Answering" (2019).

Megatron-LM draws queries from one generator for a whole process, so that a sample depends on those
before it; here each sample has random numbers of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megacore import _C
from megacore.config.faults import fault, required
from megacore.data.blended_dataset import BlendedDataset
from megacore.data.config import DataConfig, TokenizerConfig
from megacore.data.ict_config import IctConfig
from megacore.data.index_cache import IndexFiles
from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.kinds import DatasetKind, Part
from megacore.data.masking import check_vocabulary, sentence_faults
from megacore.data.sentences import (
    Sentences,
    SentenceSamples,
    find_map,
    gather_batch,
    mapping_request,
    mock_sentences,
    open_sentences,
    sentence_config,
)
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError, Fault

_SPECIAL_TOKENS = 3
_SHORTEST = _SPECIAL_TOKENS + 2


@dataclass(frozen=True)
class IctBatch:
    """One micro-batch of b pairs of S tokens; all token types are 0.

    Attributes:
        query_tokens: int64 [b, S], [CLS] query [SEP] and padding.
        query_lengths: int32 [b], tokens that are not padding.
        context_tokens: int64 [b, S], [CLS] title [SEP] block [SEP] and padding.
        context_lengths: int32 [b].
        block_data: int64 [b, 4], first sentence, the one behind the last, document, block.
        loss_mask: float32 [b], ones: every pair counts.
    """

    query_tokens: Tensor
    query_lengths: Tensor
    context_tokens: Tensor
    context_lengths: Tensor
    block_data: Tensor
    loss_mask: Tensor


@dataclass(frozen=True)
class BlockBatch:
    """Blocks for an index, without queries.

    Attributes:
        context_tokens: int64 [b, S], [CLS] title [SEP] block [SEP] and padding.
        context_lengths: int32 [b], tokens that are not padding.
        block_data: int64 [b, 4], first sentence, the one behind the last, document, block.
    """

    context_tokens: Tensor
    context_lengths: Tensor
    block_data: Tensor


@dataclass(frozen=True)
class Blocks:
    """An opened dataset of sentences, and the titles of its documents.

    Attributes:
        sentences: The text.
        titles: Reads titles; None without any.
        title_lengths: int32 [documents].
        titles_path: Their prefix.
    """

    sentences: Sentences
    titles: _C.data.TokenSource | None
    title_lengths: NDArray[np.int32]
    titles_path: str | None

    @property
    def name(self) -> str:
        """For messages."""
        return self.sentences.name

    @property
    def path(self) -> str | None:
        """Prefix of the dataset."""
        return self.sentences.path

    @property
    def num_elements(self) -> int:
        """Documents, which a split divides."""
        return self.sentences.num_elements


@dataclass(frozen=True)
class MapFiles(IndexFiles):
    """Files of a map of blocks under their old names, beside the dataset."""

    def path(self, name: str, suffix: str = ".npy") -> Path:
        """STEM.npy is the map itself."""
        if name == "indexmap":
            return self.directory / f"{self.stem}{suffix}"
        return super().path(name, suffix)


class IctDataset(SentenceSamples):
    """Samples of the inverse cloze task; see `SentenceSamples`."""

    def blocks(self, samples: NDArray[np.int64], *, vocab_size: int) -> BlockBatch:
        """Whole blocks, for an index of them.

        Args:
            samples: int64 [b].
            vocab_size: Every token id must be smaller.
        """
        shape = (len(samples), self.sequence_length)
        batch = BlockBatch(
            torch.empty(shape, dtype=torch.int64),
            torch.empty(len(samples), dtype=torch.int32),
            torch.empty((len(samples), 4), dtype=torch.int64),
        )
        self._reader.gather_blocks(
            samples,
            vocab_size=vocab_size,
            context_tokens=batch.context_tokens.numpy(),
            context_lengths=batch.context_lengths.numpy(),
            block_data=batch.block_data.numpy(),
        )
        return batch


@dataclass(frozen=True)
class IctKind(DatasetKind[Blocks]):
    """Inverse cloze task.

    Attributes:
        ict: Settings.
    """

    ict: IctConfig

    class_name: ClassVar[str] = "ICTDataset"
    elements: ClassVar[str] = "documents"

    @property
    def min_sentences(self) -> int:
        """Sentences of a block."""
        return 1 if self.ict.use_one_sent_docs else 2

    def faults(
        self, data: DataConfig, tokenizer: TokenizerConfig, *, max_positions: int | None = None
    ) -> Iterator[Fault]:
        """Rules between settings that can be told before anything is read."""
        yield from sentence_faults(data)
        if data.length is not None and data.length < _SHORTEST:
            yield fault("MC1303", {"--seq-length": data.length}, allowed=f"at least {_SHORTEST}")
        titles = self.ict.titles_data_path
        if data.mock_data:
            return
        if titles is None:
            yield required("--titles-data-path")
        elif data.data_path is None or len(data.data_path) != 1:
            yield fault("MC1307", {"--titles-data-path": titles}, allowed="--data-path PREFIX")

    def check(self, data: DataConfig, tokenizer: Tokenizer) -> None:
        """See `DatasetKind`."""
        check_vocabulary(tokenizer, ("cls", "sep", "pad"), model="the inverse cloze task")

    def open(self, prefix: str, data: DataConfig) -> Blocks:
        """The sentences, and the titles of their documents."""
        sentences = open_sentences(
            prefix, data, min_sentences=self.min_sentences, model="the inverse cloze task"
        )
        path = self.ict.titles_data_path
        if path is None:
            return _without_titles(sentences)
        titles = IndexedDataset(path, mmap=data.mmap_bin_files)
        if len(titles) != sentences.num_elements:
            raise DataError(
                f"--titles-data-path {path} has {len(titles)} titles, but {prefix} has "
                f"{sentences.num_elements} documents, and each needs one; prepare the titles from "
                "the same file, with --json-keys title and without --split-sentences"
            )
        return Blocks(sentences, _C.data.token_source(titles.reader), titles.sequence_lengths, path)

    def mock(self, tokenizer: Tokenizer) -> Blocks:
        """See `mock_sentences`; without titles."""
        return _without_titles(mock_sentences(tokenizer.sep))

    def member(
        self, source: Blocks, part: Part, data: DataConfig, tokenizer: Tokenizer
    ) -> IctDataset:
        """See `DatasetKind`."""
        length = data.seq_length
        assert length is not None
        part.identity.update(
            titles_path=source.titles_path, use_one_sentence_documents=self.min_sentences == 1
        )
        request = mapping_request(
            source.sentences,
            part,
            max_length=length - _SPECIAL_TOKENS,
            min_sentences=self.min_sentences,
        )
        sample_map = find_map(
            source.sentences,
            self._files(source, part, length, data),
            lambda progress: _C.data.map_blocks(
                source.sentences.lengths,
                source.sentences.boundaries,
                source.title_lengths,
                request,
                wide=source.sentences.is_wide,
                progress=progress,
            ),
            name="indexmap",
            columns=4,
            may_build=part.may_build,
        )
        reader = _C.data.IctSamples(
            source.sentences.source,
            sample_map,
            sentence_config(part, tokenizer, sequence_length=length),
            titles=source.titles,
            query_in_block=self.ict.query_in_block_prob,
        )
        row = (length,)
        return IctDataset(
            part,
            name=source.name,
            sequence_length=length,
            sample_map=sample_map,
            reader=reader,
            arrays={
                "query_tokens": (row, torch.int64),
                "query_lengths": ((), torch.int32),
                "context_tokens": (row, torch.int64),
                "context_lengths": ((), torch.int32),
                "block_data": ((4,), torch.int64),
            },
        )

    def _files(
        self, source: Blocks, part: Part, length: int, data: DataConfig
    ) -> IndexFiles | None:
        """PREFIX_train_indexmap_..., in the folder of the dataset or of the cache."""
        if part.cache is None:
            return None
        prefix = Path(source.path or "mock")
        epochs = "_1ep" if part.num_samples is None else f"_{part.num_samples}mns"
        one = "_1sentok" if self.min_sentences == 1 else ""
        stem = f"{prefix.name}_{part.split}_indexmap{epochs}_{length}msl_{part.seed}s{one}"
        folder = Path(data.data_cache_path) if data.data_cache_path else prefix.parent
        return MapFiles(folder, stem, json.dumps(part.identity, indent=4))


def _without_titles(sentences: Sentences) -> Blocks:
    return Blocks(sentences, None, np.zeros(sentences.num_elements, np.int32), None)


def make_ict_batch(
    dataset: IctDataset | BlendedDataset, samples: NDArray[np.int64], *, vocab_size: int
) -> IctBatch:
    """The micro-batch of some samples.

    Args:
        dataset: Where they are.
        samples: int64 [b].
        vocab_size: Every token id must be smaller.

    Raises:
        DataError: An id is not in the vocabulary, or a file is damaged.
    """
    arrays: dict[str, Any] = gather_batch(dataset, samples, vocab_size=vocab_size)
    return IctBatch(**arrays, loss_mask=torch.ones(len(samples)))

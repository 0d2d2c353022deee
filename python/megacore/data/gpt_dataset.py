"""Samples of a fixed length, cut from the shuffled documents of one dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megacore import _C
from megacore.data.config import DataConfig
from megacore.data.index_cache import Arrays, ArraySpec, IndexFiles
from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.kinds import DatasetKind, Part, SampleSet
from megacore.data.tokenizers import Tokenizer

_LOGGER = logging.getLogger("megacore.data")

_MOCK_SEQUENCES = 100_000
_MOCK_LONGEST = 4096


@dataclass(frozen=True)
class Rules:
    """What is derived from the tokens of a sample.

    Attributes:
        eod: Id of the end-of-document token, -1 when none is needed.
        pad: Id that padding has, -1 for none: no loss on it, and id 0 instead of it.
        mask_eod_loss: No loss where the input is the end of a document.
        reset_position_ids: Positions start at 0 behind the end of a document.
        cut_at_eod: Attention stays inside a document.
    """

    eod: int = -1
    pad: int = -1
    mask_eod_loss: bool = False
    reset_position_ids: bool = False
    cut_at_eod: bool = False


@dataclass(frozen=True)
class Sample:
    """One sample of S tokens.

    Attributes:
        tokens: int64 [S].
        labels: int64 [S], the tokens that follow.
        loss_mask: float32 [S], 1 where the loss counts.
        position_ids: int64 [S].
        cu_seqlens: int32 [n + 1] bounds of the documents in the sample, or None.
        dataset_id: Member of the blend that it comes from, or None.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_mask: NDArray[np.float32]
    position_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32] | None
    dataset_id: int | None = None

    def without_loss(self) -> Sample:
        """The same tokens, none of which counts."""
        return replace(self, loss_mask=np.zeros_like(self.loss_mask))


@dataclass(frozen=True)
class Documents:
    """Where tokens come from, and the range of it that belongs to a split.

    Attributes:
        name: For messages and, if it is a path, in the identity of the indices.
        path: Prefix of the dataset; None for made-up data.
        source: Reads tokens.
        lengths: int32 [sequences of the whole dataset].
        first: First sequence of the split.
        last: The one behind its last.
    """

    name: str
    path: str | None
    source: _C.data.TokenSource
    lengths: NDArray[np.int32]
    first: int
    last: int

    @property
    def num_elements(self) -> int:
        """Sequences, which a split divides."""
        return len(self.lengths)


class GPTDataset:
    """The samples of one split of one dataset, in shuffled order.

    Args:
        documents: Their tokens.
        identity: What the indices depend on, in order; the first key is "class".
        split: train, valid or test.
        num_samples: How many are wanted at least; None for one epoch.
        sequence_length: S.
        seed: Of both shuffles.
        rules: What is derived from the tokens.
        cache: Folder of index files; None to keep them in memory.
        may_build: False: only load index files that another process has written.

    Raises:
        DataError: The documents do not hold one sample; the index files cannot be written.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        identity: Mapping[str, Any],
        split: str,
        num_samples: int | None,
        sequence_length: int,
        seed: int,
        rules: Rules,
        cache: Path | None,
        may_build: bool = True,
    ) -> None:
        self.identity = dict(identity)
        self.name = documents.name
        self.sequence_length = sequence_length
        self.rules = rules
        lengths = documents.lengths
        plan = _C.data.plan_gpt_indices(
            f"{documents.name}, {split} split (sequences {documents.first} to {documents.last})",
            first_document=documents.first,
            last_document=documents.last,
            tokens_per_epoch=_C.data.count_tokens(lengths, documents.first, documents.last),
            sequence_length=sequence_length,
            num_samples=num_samples,
        )
        self.num_epochs: int = plan.num_epochs

        def build() -> Arrays:
            built = _C.data.build_gpt_indices(plan, lengths, seed=seed, num_threads=2)
            return dict(zip(_specs(plan), built, strict=True))

        if cache is None:
            self.indices = build()
        else:
            files = IndexFiles.describe(cache, identity, split)
            self.indices = files.load_or_build(_specs(plan), build, may_build=may_build)
        self._gather = _C.data.GptGather(
            documents.source,
            self.indices["document_index"],
            self.indices["sample_index"],
            self.indices["shuffle_index"],
            sequence_length=sequence_length,
            pad_id=rules.pad,
        )

    def __len__(self) -> int:
        return self._gather.num_samples

    def gather(
        self,
        samples: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        vocab_size: int,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        """Fills rows of a batch, without the interpreter's lock.

        Args:
            samples: [n] sample numbers.
            rows: [n] the rows that get them.
            vocab_size: Every id must be smaller.
            tokens: int64 [b, S], written.
            labels: int64 [b, S], written.

        Raises:
            DataError: An id is not in the vocabulary, or the file is damaged.
        """
        self._gather.gather(samples, rows, vocab_size, tokens, labels)

    def __getitem__(self, index: int | None) -> Sample:
        if index is None:  # the first one with no loss on it, to fill up a batch
            return self[0].without_loss()
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.name}")
        shape = (1, self.sequence_length)
        tokens, labels = np.empty(shape, np.int64), np.empty(shape, np.int64)
        self.gather(
            np.array([index]), np.array([0]), vocab_size=2**62, tokens=tokens, labels=labels
        )
        mask, positions, bounds = finish_batch(self.rules, tokens, labels)
        return Sample(tokens[0], labels[0], mask[0], positions[0], bounds)


def finish_batch(
    rules: Rules,
    tokens: NDArray[np.int64],
    labels: NDArray[np.int64],
    loss_mask: NDArray[np.float32] | None = None,
    position_ids: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32] | None]:
    """Loss mask, position ids [b, S] and document bounds of a batch; padding becomes id 0.

    Args:
        rules: What to derive.
        tokens: int64 [b, S].
        labels: int64 [b, S].
        loss_mask: float32 [b, S] to fill, or None for a new array.
        position_ids: int64 [b, S] to fill, or None for a new array.
    """
    mask = np.empty(tokens.shape, np.float32) if loss_mask is None else loss_mask
    positions = np.empty(tokens.shape, np.int64) if position_ids is None else position_ids
    bounds = _C.data.finish_batch(
        tokens,
        labels,
        mask,
        positions,
        eod=rules.eod,
        pad=rules.pad,
        mask_eod_loss=rules.mask_eod_loss,
        reset_position_ids=rules.reset_position_ids,
        cut_at_eod=rules.cut_at_eod,
    )
    return mask, positions, bounds


class GPTKind(DatasetKind[Documents]):
    """Samples of consecutive tokens."""

    class_name: ClassVar[str] = "GPTDataset"

    def open(self, prefix: str, data: DataConfig) -> Documents:
        """All sequences of an indexed dataset; a warning if they look like sentences."""
        dataset = IndexedDataset(prefix, mmap=data.mmap_bin_files)
        if dataset.num_documents * 2 < len(dataset):
            _LOGGER.warning(
                "%s: its %d documents have %d sequences, as after --split-sentences; a GPT learns "
                "from whole documents, and here every sentence counts as one of its own",
                prefix, dataset.num_documents, len(dataset),
            )  # fmt: skip
        return indexed_documents(dataset)

    def mock(self, tokenizer: Tokenizer) -> Documents:
        """See `mock_documents`."""
        return mock_documents(tokenizer.eod)

    def member(
        self, source: Documents, part: Part, data: DataConfig, tokenizer: Tokenizer
    ) -> SampleSet:
        """See `GPTDataset`."""
        needs_eod = data.eod_mask_loss or data.reset_position_ids or data.reset_attention_mask
        rules = Rules(
            eod=tokenizer.eod if needs_eod or data.mock_data else -1,
            pad=tokenizer.pad,
            mask_eod_loss=data.eod_mask_loss,
            reset_position_ids=data.reset_position_ids,
            cut_at_eod=data.reset_attention_mask,
        )
        assert data.seq_length is not None
        return GPTDataset(
            replace(source, first=part.first, last=part.last),
            identity=part.identity,
            split=part.split,
            num_samples=part.num_samples,
            sequence_length=data.seq_length,
            seed=part.seed,
            rules=rules,
            cache=part.cache,
            may_build=part.may_build,
        )


def indexed_documents(dataset: IndexedDataset) -> Documents:
    """All sequences of an indexed dataset."""
    return Documents(
        name=f"dataset {dataset.prefix}",
        path=dataset.prefix,
        source=_C.data.token_source(dataset.reader),
        lengths=dataset.sequence_lengths,
        first=0,
        last=len(dataset),
    )


def mock_documents(eod: int) -> Documents:
    """Made-up data: sequences 1, 2, 3, ..., eod of random lengths, the same on every machine."""
    lengths = np.random.default_rng(0).integers(
        1, _MOCK_LONGEST, size=_MOCK_SEQUENCES, dtype=np.int32
    )
    return Documents(
        name="mock data",
        path=None,
        source=_C.data.mock_source(lengths, eod),
        lengths=lengths,
        first=0,
        last=_MOCK_SEQUENCES,
    )


def _specs(plan: _C.data.GptPlan) -> dict[str, ArraySpec]:
    wide = np.dtype(np.int64 if plan.wide_shuffle_index else np.uint32)
    return {
        "document_index": ArraySpec(np.dtype(np.int32), (plan.document_index_size,)),
        "sample_index": ArraySpec(np.dtype(np.int64), (plan.num_samples + 1, 2)),
        "shuffle_index": ArraySpec(wide, (plan.num_samples,)),
    }

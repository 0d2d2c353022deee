"""What a worker does with a chunk: parse, split, tokenize, and hand back flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacore.data.indexed_dataset import token_dtype
from megacore.data.preprocess.chunks import Chunk
from megacore.data.preprocess.config import PreprocessConfig, PreprocessTokenizerConfig
from megacore.data.preprocess.records import BrokenRecordError, Record, read_records
from megacore.data.preprocess.sentences import SentenceSplitter
from megacore.data.tokenizers import Tokenizer, build_tokenizer
from megacore.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """Documents ready to be written.

    Attributes:
        ids: [n] ids of all sequences, of the dataset's item type.
        lengths: [s] ids per sequence, int64.
        sequences: [d] sequences per document, int64.
    """

    ids: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray

    def select(self, documents: np.ndarray) -> Encoded:
        """The documents where the mask `documents` [d] is True."""
        sequences = np.repeat(documents, self.sequences)
        ids = np.repeat(sequences, self.lengths)
        return Encoded(self.ids[ids], self.lengths[sequences], self.sequences[documents])


@dataclass(frozen=True)
class Result:
    """What became of a chunk.

    Attributes:
        path: The file it is from.
        unit: What its records are counted in, "line" or "row".
        documents: Number of documents.
        text_bytes: Size of their text.
        consumed: Bytes of input files read up to its end.
        parts: parts[partition][key].
        broken: (line or row, reason) of the records that cannot be used.
    """

    path: str
    unit: str
    documents: int
    text_bytes: int
    consumed: int
    parts: list[list[Encoded]]
    broken: list[tuple[int, str]]


class Encoder:
    """Turns chunks into arrays of ids; one per process.

    Args of the constructor:
        config: Settings of the preparation.
        tokenizer_config: Settings of the tokenizer.

    Raises:
        DataError: Tokenizer or sentence model cannot be loaded, or there is no token to append.
    """

    def __init__(
        self, config: PreprocessConfig, tokenizer_config: PreprocessTokenizerConfig
    ) -> None:
        self._keys = config.json_keys
        self.tokenizer: Tokenizer = build_tokenizer(tokenizer_config)
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self._eod = self.tokenizer.eod if config.append_eod else None
        self._splitter = (
            SentenceSplitter(config.lang, keep_newlines=config.keep_newlines)
            if config.split_sentences
            else None
        )
        # Contiguous parts, joined again in order, are the order of the input.
        dealt = config.partitions > 1 and not config.keep_sequential_samples
        self.num_parts = config.partitions if dealt else 1

    def __call__(self, chunk: Chunk) -> Result:
        """The ids of a chunk."""
        records: list[Record] = []
        broken: list[BrokenRecordError] = []
        for one in read_records(chunk, self._keys):
            if isinstance(one, Record):
                records.append(self._split(one))
            else:
                broken.append(one)
        try:
            encoded = self._encode_all(records)
        except DataError:
            # Some text cannot be encoded: find out which, one by one.
            records, unusable = self._usable(records)
            broken = sorted([*broken, *unusable], key=lambda one: one.number)
            encoded = self._encode_all(records)
        parts = [encoded]
        if self.num_parts > 1:
            part_of = np.array([one.ordinal % self.num_parts for one in records], dtype=np.int64)
            parts = [
                [data.select(part_of == part) for data in encoded] for part in range(self.num_parts)
            ]
        return Result(
            chunk.path,
            chunk.unit,
            len(records),
            chunk.text_bytes,
            chunk.consumed,
            parts,
            [(one.number, one.reason) for one in broken],
        )

    def _split(self, record: Record) -> Record:
        if self._splitter is None:
            return record
        split = self._splitter.split
        # A list of several texts has been split before.
        values = tuple(texts if len(texts) != 1 else split(texts[0]) for texts in record.values)
        return Record(record.number, record.ordinal, values)

    def _encode_all(self, records: Sequence[Record]) -> list[Encoded]:
        return [
            self._encode([record.values[key] for record in records])
            for key in range(len(self._keys))
        ]

    def _encode(self, documents: Sequence[list[str]]) -> Encoded:
        texts = [text for document in documents for text in document]
        ids, lengths = self.tokenizer.tokenize_flat(texts)
        self._check_range(ids)
        document_of = np.repeat(
            np.arange(len(documents)), np.fromiter(map(len, documents), np.int64, len(documents))
        )
        kept = lengths > 0
        lengths, document_of = lengths[kept], document_of[kept]
        sequences = np.bincount(document_of, minlength=len(documents)).astype(np.int64)
        ids = ids.astype(self.dtype)
        if self._eod is not None:
            last = np.cumsum(sequences)[sequences > 0] - 1  # last sequence of each document
            ids = np.insert(ids, np.cumsum(lengths)[last], self._eod)
            lengths[last] += 1
        return Encoded(ids, lengths, sequences)

    def _check_range(self, ids: np.ndarray) -> None:
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.tokenizer.vocab_size:
            raise DataError(
                f"token id {low if low < 0 else high} is outside the vocabulary of the tokenizer "
                f"(0 to {self.tokenizer.vocab_size - 1})"
            )

    def _usable(self, records: Sequence[Record]) -> tuple[list[Record], list[BrokenRecordError]]:
        usable: list[Record] = []
        unusable: list[BrokenRecordError] = []
        for record in records:
            try:
                self._encode_all([record])
            except DataError as error:
                unusable.append(BrokenRecordError(record.number, str(error)))
            else:
                usable.append(record)
        return usable, unusable

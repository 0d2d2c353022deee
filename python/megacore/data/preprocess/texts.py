"""All texts of some input files, one after the other, for learning from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megacore.data.preprocess.chunks import ChunkReader, find_inputs
from megacore.data.preprocess.records import BrokenRecordError, read_records
from megacore.errors import DataError

_CHUNK_BYTES = 1024 * 1024


def read_texts(
    patterns: Sequence[str], keys: Sequence[str], *, input_format: str = "auto"
) -> Iterator[str]:
    """The texts of all records in order, in bounded memory.

    Args:
        patterns: File names, or patterns.
        keys: Fields or columns to take.
        input_format: "auto", "jsonl", "text" or "parquet". Plain text is read paragraph by
            paragraph, so that a file of any size can be learned from.

    Raises:
        DataError: A file is missing, damaged or has a broken record.
    """
    reader = ChunkReader(
        find_inputs(patterns),
        keys,
        input_format=input_format,
        text_documents="paragraph",
        chunk_bytes=_CHUNK_BYTES,
    )
    for chunk in reader:
        for record in read_records(chunk, tuple(keys)):
            if isinstance(record, BrokenRecordError):
                raise DataError(f"{chunk.path}: {chunk.unit} {record.number}: {record.reason}")
            for value in record.values:
                yield from value

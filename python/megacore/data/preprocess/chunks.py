"""Cutting input files into chunks of whole records, without reading more than a few at a time."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megacore.data.preprocess.compression import InputFile, bare_suffix
from megacore.errors import DataError

# No record can be longer: such a "line" is a binary file, or one without line ends.
MAX_RECORD_BYTES = 1 << 30

_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Chunk:
    """Some consecutive records of one file, as they go to a worker.

    Attributes:
        kind: "jsonl", "line", "paragraph" (raw bytes), or "values" (rows).
        path: The file, for messages.
        first: Number of the first line or row in the file, from 1.
        ordinal: Number of the first line or row over all files, from 0.
        text_bytes: Size of the text.
        consumed: Bytes of input files read up to and including this chunk.
        data: Raw lines.
        rows: One tuple of values for the wanted keys per record.
        unit: What records are counted in, "line" or "row".
    """

    kind: str
    path: str
    first: int
    ordinal: int
    text_bytes: int
    consumed: int
    data: bytes = b""
    rows: list[tuple[object, ...]] = field(default_factory=list)
    unit: str = "line"


def find_inputs(patterns: Sequence[str], partitions: int = 1) -> list[str]:
    """The input files in order.

    Args:
        patterns: File names, or patterns whose matches are taken in order of their names.
        partitions: With more than one and a single file FILE.EXT, the files FILE_0.EXT,
            FILE_1.EXT, ... are read instead when all of them exist.

    Raises:
        DataError: Nothing matches, or a name is a folder.
    """
    if partitions > 1 and len(patterns) == 1:
        stem, extension = os.path.splitext(patterns[0])
        parts = [f"{stem}_{i}{extension}" for i in range(partitions)]
        if all(map(os.path.isfile, parts)):
            return parts
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise DataError(f"{pattern}: there is no such input file")
        for path in found:
            if os.path.isdir(path):
                raise DataError(f"{path}: expected a file, found a folder (use '{path}/*')")
        files += found
    return files


def format_of(path: str, input_format: str) -> str:
    """ "jsonl", "text" or "parquet", from the name unless it is said."""
    if input_format != "auto":
        return input_format
    suffix = bare_suffix(path)
    return {".txt": "text", ".parquet": "parquet"}.get(suffix, "jsonl")


class ChunkReader:
    """Reads all input files once, in order, as chunks.

    Args of the constructor:
        paths: Files.
        keys: Names of the wanted values.
        input_format: "auto", "jsonl", "text" or "parquet".
        text_documents: "file", "paragraph" or "line".
        chunk_bytes: Wanted size of a chunk.
    """

    def __init__(
        self,
        paths: Sequence[str],
        keys: Sequence[str],
        *,
        input_format: str = "auto",
        text_documents: str = "file",
        chunk_bytes: int,
    ) -> None:
        self._paths = paths
        self._keys = tuple(keys)
        self._format = input_format
        self._text_documents = text_documents
        self._chunk_bytes = chunk_bytes
        self._ordinal = 0
        self._consumed_before = 0
        if len(self._keys) > 1:
            plain = next((p for p in paths if format_of(p, input_format) == "text"), None)
            if plain is not None:
                raise DataError(
                    f"{plain}: plain text has no keys, found --json-keys {' '.join(self._keys)}"
                )

    def __iter__(self) -> Iterator[Chunk]:
        for path in self._paths:
            kind = format_of(path, self._format)
            if kind == "parquet":
                chunks = self._parquet(path)
            elif kind == "jsonl":
                chunks = self._raw(path, "jsonl")
            elif self._text_documents == "file":
                chunks = self._whole_file(path)
            else:
                chunks = self._raw(path, self._text_documents)
            yield from chunks
            self._consumed_before += os.path.getsize(path)

    def _raw(self, path: str, kind: str) -> Iterator[Chunk]:
        file = InputFile(path)
        first = 1
        for data in _cut(file, self._chunk_bytes, paragraphs=kind == "paragraph"):
            if first == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            lines = data.count(b"\n")
            yield Chunk(
                kind,
                path,
                first,
                self._ordinal,
                len(data),
                self._consumed_before + file.position,
                data=data,
            )
            first += lines
            # The last line of a file may lack its newline.
            self._ordinal += lines + (not data.endswith(b"\n"))

    def _whole_file(self, path: str) -> Iterator[Chunk]:
        file = InputFile(path)
        blocks, size = [], 0
        for block in file.blocks():
            blocks.append(block)
            size += len(block)
            if size > MAX_RECORD_BYTES:
                raise DataError(
                    f"{path}: the file is longer than {MAX_RECORD_BYTES} bytes, the limit for one "
                    "document; use --text-documents paragraph or line"
                )
        content = b"".join(blocks).removeprefix(b"\xef\xbb\xbf")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{path}: line {line}: not UTF-8: {error.reason}") from error
        if not text.strip():
            return
        consumed = self._consumed_before + file.position
        yield Chunk("values", path, 1, self._ordinal, size, consumed, rows=[(text,)])
        self._ordinal += 1

    def _parquet(self, path: str) -> Iterator[Chunk]:
        import pyarrow
        import pyarrow.parquet as parquet

        size = os.path.getsize(path)
        try:
            file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot read the Parquet file: {error}") from error
        with file:
            names = file.schema_arrow.names
            missing = [key for key in self._keys if key not in names]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)} (columns: {', '.join(names)})"
                )
            rows_in_file, done = file.metadata.num_rows, 0
            batches = file.iter_batches(batch_size=256, columns=list(self._keys), use_threads=False)
            try:
                for batch in batches:
                    columns = [batch.column(key).to_pylist() for key in self._keys]
                    rows = list(zip(*columns, strict=True))
                    done += len(rows)
                    consumed = self._consumed_before + size * done // max(rows_in_file, 1)
                    yield Chunk(
                        "values",
                        path,
                        done - len(rows) + 1,
                        self._ordinal,
                        int(batch.nbytes),
                        consumed,
                        rows=rows,
                        unit="row",
                    )
                    self._ordinal += len(rows)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(
                    f"{path}: cannot read the Parquet file after row {done}: {error}"
                ) from error


def _cut(file: InputFile, chunk_bytes: int, *, paragraphs: bool) -> Iterator[bytes]:
    """The content in pieces of about `chunk_bytes` that end where a record ends."""
    kept: list[bytes] = []
    size = 0
    for block in file.blocks():
        kept.append(block)
        size += len(block)
        if size < chunk_bytes:
            continue
        # Look at the new block alone first, so that a long record is not joined again and again.
        seam = kept[-2][-64:] if paragraphs and len(kept) > 1 else b""
        if not (_BLANK_LINE.search(seam + block) if paragraphs else b"\n" in block):
            _check_record(file.path, size)
            continue
        data = b"".join(kept)
        end = _last_break(data) if paragraphs else data.rfind(b"\n") + 1
        begin = 0
        # A block may hold several chunks' worth; smaller pieces keep all workers busy.
        while end - begin > 2 * chunk_bytes and not paragraphs:
            middle = data.find(b"\n", begin + chunk_bytes) + 1
            if not 0 < middle < end:
                break
            yield data[begin:middle]
            begin = middle
        yield data[begin:end]
        kept, size = [data[end:]], len(data) - end
    rest = b"".join(kept)
    if rest:
        yield rest


def _last_break(data: bytes) -> int:
    """Where the last paragraph of `data` begins, 0 when there is only one."""
    last = 0
    for match in _BLANK_LINE.finditer(data):
        last = match.end()
    return last


def _check_record(path: str, size: int) -> None:
    if size > MAX_RECORD_BYTES:
        raise DataError(
            f"{path}: a record longer than {MAX_RECORD_BYTES} bytes; is this a text file?"
        )


def total_size(paths: Sequence[str]) -> int:
    """Size of all files on disk, in bytes."""
    return sum(Path(path).stat().st_size for path in paths)

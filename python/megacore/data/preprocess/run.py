"""Text preparation from beginning to end: read, encode in parallel, write, publish."""

from __future__ import annotations

import glob
import os
import sys
from contextlib import ExitStack
from typing import TextIO

from megacore.data.indexed_dataset import IndexedDatasetWriter
from megacore.data.preprocess.chunks import ChunkReader, find_inputs, total_size
from megacore.data.preprocess.config import PreprocessConfig, PreprocessTokenizerConfig
from megacore.data.preprocess.encode import Encoder, Result
from megacore.data.preprocess.pool import WorkerPool
from megacore.data.preprocess.progress import Progress
from megacore.errors import DataError

_MIN_CHUNK_BYTES = 64 * 1024
_MAX_CHUNK_BYTES = 1024 * 1024
_CHUNKS_PER_WORKER = 16


def preprocess(
    config: PreprocessConfig,
    tokenizer_config: PreprocessTokenizerConfig,
    *,
    stream: TextIO | None = None,
) -> list[str]:
    """Encodes text files into one indexed dataset per key.

    The order of documents is that of the input, unless they are dealt out to partitions. Nothing
    appears under the final names before all input has been read.

    Args:
        config: What to read and write.
        tokenizer_config: The tokenizer.
        stream: Where progress goes; None for standard error.

    Returns:
        The prefixes that were written, one per key.

    Raises:
        ConfigError: A required setting is missing.
        DataError: An input is missing, damaged, broken or empty, or an output cannot be written.
    """
    config = config.resolved()
    tokenizer_config = tokenizer_config.resolved()
    inputs = find_inputs(config.input or (), config.partitions)
    size = total_size(inputs)
    progress = Progress(stream or sys.stderr, config.log_interval, size)
    workers = config.workers or 1
    chunk_bytes = max(
        _MIN_CHUNK_BYTES, min(_MAX_CHUNK_BYTES, size // (workers * _CHUNKS_PER_WORKER))
    )
    reader = ChunkReader(
        inputs,
        config.json_keys,
        input_format=config.input_format,
        text_documents=config.text_documents,
        chunk_bytes=chunk_bytes,
    )
    encoder = Encoder(config, tokenizer_config)
    kind = tokenizer_config.tokenizer_type or ""
    if kind.startswith("Bert") and not config.split_sentences:
        progress.note("note: BERT's datasets expect one sequence a sentence (--split-sentences)")
    if tuple(inputs) != config.input and config.partitions > 1 and len(config.input or ()) == 1:
        progress.note(f"Reading the {len(inputs)} files {inputs[0]} ... {inputs[-1]}")
    # Workers first: what is opened afterwards is the parent's alone.
    with (
        WorkerPool(Encoder, (config, tokenizer_config), encoder, workers) as pool,
        _Outputs(config, encoder) as outputs,
    ):
        for result in pool.map(reader):
            for number, reason in result.broken:
                if config.on_error == "stop":
                    raise DataError(
                        f"{result.path}: {result.unit} {number}: {reason} "
                        "(--on-error skip leaves such records out)"
                    )
                progress.report_broken(f"{result.path}: {result.unit} {number}: {reason}")
            outputs.add(result)
            progress.add(result.documents, result.text_bytes, result.consumed)
        if not progress.documents:
            raise DataError(
                f"{', '.join(inputs[:5])}: no documents found"
                + (f" ({progress.broken} broken records)" if progress.broken else "")
            )
        pool.close()
        outputs.publish()
    progress.finish()
    return [config.prefix(key) for key in config.json_keys]


class _Outputs:
    """The writers of one run: a pair per key, and one per key and part while parts are dealt."""

    def __init__(self, config: PreprocessConfig, encoder: Encoder) -> None:
        self._stack = ExitStack()
        self._part_prefixes: list[list[str]] = []
        self._finals: list[IndexedDatasetWriter] = []
        self._writers: list[list[IndexedDatasetWriter]] = []
        with ExitStack() as stack:
            for key in config.json_keys:
                self._finals.append(_open(stack, config.prefix(key), encoder))
                # This run holds the lock of the final name now, so what other runs left is stale.
                _remove_parts(config, key)
            self._writers = [self._finals]
            if encoder.num_parts > 1:
                self._writers = []
                for part in range(encoder.num_parts):
                    prefixes = [_part_prefix(config, part, key) for key in config.json_keys]
                    self._part_prefixes.append(prefixes)
                    self._writers.append([_open(stack, name, encoder) for name in prefixes])
            self._stack = stack.pop_all()

    def add(self, result: Result) -> None:
        """Writes the documents of a chunk."""
        for writers, encoded in zip(self._writers, result.parts, strict=True):
            for writer, data in zip(writers, encoded, strict=True):
                writer.add_documents(data.ids, data.lengths, data.sequences)

    def publish(self) -> None:
        """Joins the parts and gives all pairs their final names."""
        for prefixes, writers in zip(self._part_prefixes, self._writers, strict=False):
            for name, writer, final in zip(prefixes, writers, self._finals, strict=True):
                writer.finalize()
                final.append(name)
                for extension in (".bin", ".idx"):
                    os.unlink(name + extension)
        for final in self._finals:
            final.finalize()

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()
        for prefixes in self._part_prefixes:
            for name in prefixes:
                _remove(name)


def _open(stack: ExitStack, prefix: str, encoder: Encoder) -> IndexedDatasetWriter:
    writer = IndexedDatasetWriter(prefix, encoder.dtype)
    # After finalize this does nothing; before, it removes the unfinished files.
    stack.callback(writer.abandon)
    return writer


def _part_prefix(config: PreprocessConfig, part: int | str, key: str) -> str:
    # The name that the parts of a partitioned run have always had, marked as unfinished so that
    # it can never be somebody's dataset.
    return f"{config.output_prefix}_{part}_{key}_{config.level}.part"


def _remove_parts(config: PreprocessConfig, key: str) -> None:
    escaped = glob.escape(config.output_prefix or "")
    pattern = f"{escaped}_[0-9]*_{glob.escape(key)}_{config.level}.part.*"
    for path in glob.glob(pattern):
        _unlink_quietly(path)


def _remove(prefix: str) -> None:
    for path in glob.glob(glob.escape(prefix) + ".*"):
        _unlink_quietly(path)


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

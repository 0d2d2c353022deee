"""From a chunk to the texts in it, with every broken record named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from megacore.data.preprocess.chunks import Chunk

_PARAGRAPH_END = re.compile(rb"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True)
class Record:
    """One document of the input.

    Attributes:
        number: Its line (or row) in the file, from 1.
        ordinal: Its line (or row) over all files, from 0.
        values: For each key, the texts of the document: one, or its sentences.
    """

    number: int
    ordinal: int
    values: tuple[list[str], ...]


class BrokenRecordError(Exception):
    """A record that cannot be used.

    Attributes:
        number: Its line (or row) in the file, from 1.
        reason: What is wrong.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")
        self.number = number
        self.reason = reason


def read_records(chunk: Chunk, keys: Sequence[str]) -> Iterator[Record | BrokenRecordError]:
    """The records of a chunk in order; blank lines are none.

    Args:
        chunk: As the reader made it.
        keys: The values to take.
    """
    if chunk.kind == "values":
        for i, row in enumerate(chunk.rows):
            yield _record(chunk, i, keys, row)
        return
    if chunk.kind == "paragraph":
        yield from _paragraphs(chunk)
        return
    for i, line in enumerate(chunk.data.split(b"\n")):
        if not line or line.isspace():
            continue
        if chunk.kind == "line":
            yield _text_record(chunk, i, line.removesuffix(b"\r"))
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            try:
                found = _lenient_json(line, error)
            except ValueError as broken:
                yield BrokenRecordError(chunk.first + i, str(broken))
                continue
        if not isinstance(found, dict):
            kind = type(found).__name__
            yield BrokenRecordError(chunk.first + i, f"expected a JSON object, found {kind}")
            continue
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            there = ", ".join(list(found)[:20])
            reason = f"no key {missing!r} (keys: {there})"
            yield BrokenRecordError(chunk.first + i, reason)
            continue
        yield _record(chunk, i, keys, [found[key] for key in keys])


def _lenient_json(line: bytes, strict: orjson.JSONDecodeError) -> object:
    """What Python's own reader accepts and orjson does not: NaN, lone surrogates in other keys."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line: {error.reason}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {strict}") from error


def _paragraphs(chunk: Chunk) -> Iterator[Record | BrokenRecordError]:
    begin = line = 0
    data = chunk.data
    while begin < len(data):
        found = _PARAGRAPH_END.search(data, begin)
        end, after = (found.start(), found.end()) if found else (len(data), len(data))
        text = data[begin:end].replace(b"\r\n", b"\n").strip(b"\r\n")
        if text and not text.isspace():
            yield _text_record(chunk, line, text)
        line += data.count(b"\n", begin, after)
        begin = after


def _text_record(chunk: Chunk, i: int, text: bytes) -> Record | BrokenRecordError:
    try:
        return Record(chunk.first + i, chunk.ordinal + i, ([text.decode("utf-8")],))
    except UnicodeDecodeError as error:
        return BrokenRecordError(chunk.first + i, f"not UTF-8: {error.reason}")


def _record(
    chunk: Chunk, i: int, keys: Sequence[str], values: Sequence[object]
) -> Record | BrokenRecordError:
    texts: list[list[str]] = []
    for key, value in zip(keys, values, strict=False):
        parts: list[Any] = value if isinstance(value, list) else [value]
        wrong = [part for part in parts if not isinstance(part, str)]
        if wrong:
            found = "null" if wrong[0] is None else type(wrong[0]).__name__
            return BrokenRecordError(
                chunk.first + i, f"key {key!r}: expected a string, found {found}"
            )
        if not all(map(_is_text, parts)):
            return BrokenRecordError(
                chunk.first + i,
                f"key {key!r}: the text has a lone surrogate, which is no character",
            )
        texts.append(parts)
    return Record(chunk.first + i, chunk.ordinal + i, tuple(texts))


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

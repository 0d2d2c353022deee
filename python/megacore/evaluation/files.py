"""Reading task files; every error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megacore.errors import DataError


def read_text(path: Path) -> str:
    """A whole file, with its line ends as they are.

    Raises:
        DataError: It cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte {error.start}: {error.reason}") from error
    if not text.strip():
        raise DataError(f"{path}: empty")
    return text


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank; only newlines end a line.

    Raises:
        DataError: As `read_text`.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("FILE, line N") and object of every line that is not blank.

    Raises:
        DataError: As `read_text`, or a line is no JSON object.
    """
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: expected a JSON object, found {type(record).__name__}")
        yield place, record


def text_field(record: dict[str, Any], name: str, place: str) -> str:
    """A field of a record that must be text.

    Raises:
        DataError: It is missing, or something else.
    """
    value = record.get(name)
    if not isinstance(value, str):
        found = "nothing" if name not in record else type(value).__name__
        raise DataError(f"{place}: expected text in {name!r}, found {found}")
    return value

"""Reading the files a tokenizer is made of, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import orjson

from megacore.errors import DataError


def read_bytes(path: str, what: str) -> bytes:
    """The content of a tokenizer file.

    Args:
        path: File to read.
        what: Its role, for messages ("vocabulary", "BPE merges", ...).

    Raises:
        DataError: The file cannot be read or is empty.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot read the {what} file: {reason}") from error
    if not content:
        raise DataError(f"{path}: the {what} file is empty")
    return content


def read_text(path: str, what: str) -> str:
    """The content of a UTF-8 tokenizer file; DataError when it is not UTF-8."""
    content = read_bytes(path, what)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected a {what} file in UTF-8, found byte 0x{content[error.start]:02x} "
            f"at offset {error.start} (a binary file?)"
        ) from error


def read_json(path: str, what: str) -> object:
    """The value of a JSON tokenizer file; DataError when it is not JSON."""
    content = read_bytes(path, what)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: expected a {what} file in JSON: {error}") from error

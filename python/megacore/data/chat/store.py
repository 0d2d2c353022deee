"""Tokens of a file of conversations, made once and kept beside it.

The files are found again by a hash of what they were made from: the content of the data, the
tokenizer, the template. They are maps of the disk, so their size does not matter.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacore.data.chat.encoding import Encoder
from megacore.data.chat.records import read_records
from megacore.data.chat.template import ChatTemplate
from megacore.data.chat.tokens import TokenizedChats
from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megacore.errors import DataError

# Raised when the meaning of the files changes.
_VERSION = 1
_TOKENS, _LEARNED, _BOUNDS, _LINES = "tokens.bin", "learned.bin", "bounds.bin", "lines.bin"
_CHUNK_BYTES = 1 << 22
_SAY_EVERY_S = 5.0

Say = Callable[[str], None]


def tokenized(
    path: Path,
    *,
    template: ChatTemplate,
    tokenizer: HuggingFaceTokenizer,
    cache: Path | None,
    may_build: bool = True,
    say: Say = lambda text: None,
) -> TokenizedChats:
    """The tokens of a file of conversations, from the cache or into it.

    Args:
        path: JSON lines.
        template: Renders conversations.
        tokenizer: Tokenizes them.
        cache: Folder for the files; None for one beside the data.
        may_build: False: another process has made them, and they only have to be found.
        say: Told what takes long.

    Raises:
        DataError: A line cannot be used (the message names it), or files cannot be written or
            found.
    """
    folder = cache or path.parent / "cache" / "chats"
    found = folder / _key(path, template, tokenizer)
    if not found.is_dir():
        if not may_build:
            raise DataError(
                f"{found}: not there, although the first process has written it; is the folder "
                "shared by all machines? (--data-cache-path)"
            )
        _build(path, Encoder(template, tokenizer), found, say)
    return _load(path, found)


def _key(path: Path, template: ChatTemplate, tokenizer: HuggingFaceTokenizer) -> str:
    digest = hashlib.sha256()
    settings = {"version": _VERSION, "template": template.identity}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for file in (tokenizer.directory / "tokenizer.json", path):
        try:
            digest.update(f"\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _build(path: Path, encoder: Encoder, target: Path, say: Say) -> None:
    started = said = time.monotonic()
    # A name that another process cannot have at the same time; the last rename wins.
    scratch = target.with_name(f".{target.name}.{time.time_ns():x}")
    try:
        scratch.mkdir(parents=True)
        bounds, lines = [0], []
        with (scratch / _TOKENS).open("wb") as tokens, (scratch / _LEARNED).open("wb") as learned:
            for line, one in encoder.encode(read_records(path), str(path)):
                one.ids.tofile(tokens)
                one.learned.tofile(learned)
                bounds.append(bounds[-1] + len(one.ids))
                lines.append(line)
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    say(f" > {path}: {len(lines)} texts tokenized ({bounds[-1]} tokens)")
        np.array(bounds, dtype=np.int64).tofile(scratch / _BOUNDS)
        np.array(lines, dtype=np.int64).tofile(scratch / _LINES)
        if not target.is_dir():
            scratch.rename(target)
    except OSError as error:
        raise DataError(
            f"{target.parent}: the tokens of {path} cannot be kept there: {error.strerror}; name "
            "another folder with --data-cache-path"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - started
    say(f" > {path}: {len(lines)} texts, {bounds[-1]} tokens, tokenized in {seconds:.1f} s")


def _load(path: Path, folder: Path) -> TokenizedChats:
    try:
        bounds = np.fromfile(folder / _BOUNDS, dtype=np.int64)
        lines = np.fromfile(folder / _LINES, dtype=np.int64)
        tokens = _mapped(folder / _TOKENS, np.dtype(np.int32))
        learned = _mapped(folder / _LEARNED, np.dtype(np.uint8))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    sizes = (len(tokens), len(learned), len(lines) + 1)
    if len(bounds) == 0 or sizes != (bounds[-1], bounds[-1], len(bounds)):
        raise DataError(f"{folder}: damaged: remove it, it will be made again from {path}")
    return TokenizedChats(path, tokens, learned, bounds, lines)


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")

"""English text that every CPython installation carries: help topics, docstrings and comments.

Nothing is imported or executed: sources are read as text, docstrings come from the syntax tree
and comments from the lines outside string literals. One module or help topic makes one document.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from megacore.durable import published
from megacore.errors import DataError

_MIN_CHARACTERS = 200
_DOCSTRING_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SKIPPED_DIRECTORIES = frozenset({"site-packages", "dist-packages", "__pycache__", "lib2to3"})


def write_corpus(path: Path) -> tuple[int, int]:
    """Writes the corpus as JSON lines with the keys "text" and "source".

    Args:
        path: File to write; it is replaced only when the corpus is complete.

    Returns:
        Number of documents and number of bytes of text (UTF-8).

    Raises:
        DataError: The standard library of this interpreter has no readable sources.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = text_bytes = 0
    with published(path) as out:
        for source, text in _shuffled(list(_documents())):
            out.write(json.dumps({"text": text, "source": source}).encode() + b"\n")
            documents += 1
            text_bytes += len(text.encode("utf-8"))
        if documents == 0:
            raise DataError(
                f"no Python sources under {_library_directory()}: "
                "expected the standard library's .py files, from which the demo text is taken"
            )
    return documents, text_bytes


def _shuffled(documents: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # Ordered by a hash of the name: mixed, so that every split sees every kind of text, and the
    # same on every machine.
    return sorted(documents, key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _library_directory() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _documents() -> Iterator[tuple[str, str]]:
    root = _library_directory()
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_DIRECTORIES.intersection(relative.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # deliberately broken test files, or unreadable ones
        if relative.parts[0] == "pydoc_data":
            for name, topic in _help_topics(source):
                yield f"topic:{name}", topic
            continue
        text = _prose(source, seen)
        if len(text) >= _MIN_CHARACTERS:
            yield relative.as_posix(), text


def _help_topics(source: str) -> Iterator[tuple[str, str]]:
    """The texts of `topics = {name: text, ...}`, read from the syntax tree."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                text = str(value.value).strip()
                if len(text) >= _MIN_CHARACTERS:
                    yield str(key.value), text


def _prose(source: str, seen: set[bytes]) -> str:
    """Docstrings and comment blocks of one module in source order, each paragraph once overall."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return ""
    kept = []
    for _, text in sorted([*_docstrings(nodes), *_comment_blocks(source, nodes)]):
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(text)
    return "\n\n".join(kept).encode("utf-8", "replace").decode("utf-8")


def _docstrings(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, _DOCSTRING_NODES):
            text = ast.get_docstring(node)
            if text and _is_prose(text):
                yield getattr(node, "lineno", 0), text


def _comment_blocks(source: str, nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Runs of comment lines, without their marks; lines inside string literals are not comments."""
    in_string: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            in_string.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    block: list[str] = []
    for number, line in enumerate(source.split("\n"), start=1):
        stripped = line.strip()
        if stripped.startswith("#") and number not in in_string:
            block.append(stripped.lstrip("#").removeprefix(" "))
        elif block:
            text = "\n".join(block).strip("\n")
            if _is_prose(text):
                yield number - len(block), text
            block = []


def _is_prose(text: str) -> bool:
    """Whether a text is mostly words: keeps sentences, drops rulers and commented-out code."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= 20 and letters >= 0.75 * len(text) and bool(re.search(r"[a-z]{3}", text))

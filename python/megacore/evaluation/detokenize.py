"""Undoing the tokenisation of published language-model texts, by Megatron-LM's rules.

A byte-level vocabulary has never seen " @-@ " or a blank before a comma, so the text is brought
back to how it is usually written. The rules are applied in the order in which they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_WIKI_SEPARATORS = (
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_WIKI_BRACKETS = tuple(
    (re.compile(rf"\{left}\s*([^\{right}]*?)\s*\{right}"), left, right)
    for left, right in ("()", "[]", "{}", '""', "''")
)
_DEGREE = "\u00b0"
_WIKI_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (f" {_DEGREE} ", _DEGREE),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
_PTB = (
    (" '", "'"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" n't", "n't"),
    (" N ", "1 "),
    ("$ 1", "$1"),
    ("# 1", "#1"),
)


def wiki(text: str) -> str:
    """WikiText as it was before its tokenisation."""
    text = _replaced(text.replace("s '", "s'"), _WIKI_SEPARATORS)
    for pattern, left, right in _WIKI_BRACKETS:
        text = pattern.sub(rf"{left}\1{right}", text)
    return _replaced(text, _WIKI_REST)


def ptb(text: str) -> str:
    """Text of the Penn Treebank as it was before its tokenisation."""
    return _replaced(text, _PTB)


def unchanged(text: str) -> str:
    """Text that needs nothing, such as LAMBADA's."""
    return text


# The first name that is part of the path says which rules a file needs.
DETOKENIZERS: dict[str, Callable[[str], str]] = {"ptb": ptb, "wiki": wiki, "lambada": unchanged}


def detokenizer_of(path: str) -> tuple[str, Callable[[str], str]] | None:
    """Name and function of the rules for a file, or None when its path names none."""
    return next(((name, rules) for name, rules in DETOKENIZERS.items() if name in path), None)


def _replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text

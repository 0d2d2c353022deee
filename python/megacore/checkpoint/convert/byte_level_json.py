"""Makes a tokenizer.json for a byte-level BPE, as the tokenizers library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut before merging.
LLAMA3_CUT = _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2_CUT = _WORDS + r"|\p{N}" + _REST


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text as it stands, before anything is cut or merged."""

    number: int
    content: str
    special: bool


def byte_level_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[str] | Sequence[tuple[str, str]],
    *,
    added: Sequence[AddedToken] = (),
    cut: str | None = None,
    ignore_merges: bool = False,
    normalised: bool = False,
    begin: AddedToken | None = None,
) -> bytes:
    """Content of a tokenizer.json.

    Args:
        vocabulary: Token, in GPT-2's alphabet of bytes -> id.
        merges: Pairs of tokens, the most urgent first; as "left right" or as pairs.
        added: Tokens found as they stand.
        cut: Regular expression that cuts text; None for GPT-2's own.
        ignore_merges: A piece of text that is a token is that token, whatever the merges say.
        normalised: Text is brought into NFC first.
        begin: Put before every text.

    Raises:
        ValueError: The library does not accept it; the message says why.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre: dict[str, Any] = {**level, "use_regex": cut is None}
    if cut is not None:
        split = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated"}
        pre = {"type": "Sequence", "pretokenizers": [{**split, "invert": False}, pre]}
    text = json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": one.number,
                    "content": one.content,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": one.special,
                }
                for one in added
            ],
            "normalizer": {"type": "NFC"} if normalised else None,
            "pre_tokenizer": pre,
            "post_processor": {**level, "use_regex": True} if begin is None else _begin(begin),
            "decoder": {**level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": ignore_merges,
                "vocab": dict(vocabulary),
                "merges": list(merges),
            },
        },
        ensure_ascii=False,
    )
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for a wrong file
        raise ValueError(str(error)) from error
    return text.encode()


def _begin(token: AddedToken) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token.content, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token.content, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            token.content: {
                "id": token.content,
                "ids": [token.number],
                "tokens": [token.content],
            }
        },
    }

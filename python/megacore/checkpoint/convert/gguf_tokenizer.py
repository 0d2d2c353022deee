"""The tokenizer inside a GGUF file, as files that other programs read.

A "llama" tokenizer becomes a SentencePiece model, a "gpt2" one a tokenizer.json. What cannot be
carried over exactly is not carried over, and said.

Source: the tokenizer.ggml.* keys of the GGUF specification; sentencepiece_model.proto.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from megacore.checkpoint.convert.byte_level_json import (
    LLAMA3_CUT,
    QWEN2_CUT,
    AddedToken,
    byte_level_json,
)
from megacore.checkpoint.convert.tokenizer_files import TokenizerFiles

_KEY = "tokenizer.ggml."
# Kinds of pieces; the numbers are those of SentencePiece.
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
# How text is cut before merging, by tokenizer.ggml.pre; None is GPT-2's own way.
_CUTS: dict[str, str | None] = {
    "gpt-2": None,
    "llama-bpe": LLAMA3_CUT,
    "llama3": LLAMA3_CUT,
    "llama-v3": LLAMA3_CUT,
    "smaug-bpe": LLAMA3_CUT,
    "qwen2": QWEN2_CUT,
}


def gguf_tokenizer(
    metadata: Mapping[str, Any], rows: int, where: str
) -> tuple[TokenizerFiles, int | None, tuple[str, ...]]:
    """The tokenizer of a model.

    Args:
        metadata: Of the file.
        rows: Rows of the word embedding.
        where: The file, for remarks.

    Returns:
        The tokenizer, empty if it cannot be carried over; the true vocabulary size, if it is
        known; and remarks for the user.
    """
    tokens = metadata.get(_KEY + "tokens")
    if not isinstance(tokens, list) or not tokens:
        size = metadata.get("llama.vocab_size")
        return (
            TokenizerFiles(),
            size if isinstance(size, int) else None,
            (f"{where} holds no tokenizer",),
        )
    kind = metadata.get(_KEY + "model")
    try:
        if kind == "llama":
            made = _sentence_pieces(metadata, tokens)
        elif kind == "gpt2":
            made = _byte_level(metadata, tokens)
        else:
            raise _NotCarried(f"kind {kind!r} is not known")
    except _NotCarried as reason:
        remark = f"the tokenizer of {where} is not carried over ({reason}): give --tokenizer-model"
        return TokenizerFiles(), min(len(tokens), rows), (remark,)
    return made, min(len(tokens), rows), ()


class _NotCarried(Exception):
    """Why a tokenizer stays behind."""


def _kinds(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    kinds = metadata.get(_KEY + "token_type")
    if kinds is None:
        return [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise _NotCarried(f"{len(tokens)} tokens, but {len(kinds)} token types")
    return [int(kind) for kind in kinds]


def _special(metadata: Mapping[str, Any], tokens: Sequence[str], name: str) -> int | None:
    number = metadata.get(f"{_KEY}{name}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(tokens) else None


def _settings_file(metadata: Mapping[str, Any], tokens: Sequence[str]) -> bytes:
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    for key, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        number = _special(metadata, tokens, name)
        if number is not None:
            settings[f"{key}_token"] = tokens[number]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> TokenizerFiles:
    cut = metadata.get(_KEY + "pre", "gpt-2")
    if cut not in _CUTS:
        raise _NotCarried(f"its way to cut text, {cut!r}, is not known")
    merges = metadata.get(_KEY + "merges")
    if not isinstance(merges, list):
        raise _NotCarried("it has no merges")
    kinds = _kinds(metadata, tokens)
    added = [
        AddedToken(number, token, special=kind == _CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    is_llama = _CUTS[cut] == LLAMA3_CUT
    number = _special(metadata, tokens, "bos")
    # llama.cpp begins every text of Llama 3 with the token unless the file says otherwise.
    begin = None
    if number is not None and metadata.get(_KEY + "add_bos_token", is_llama):
        begin = AddedToken(number, tokens[number], special=True)
    try:
        content = byte_level_json(
            {token: number for number, token in enumerate(tokens)},
            merges,
            added=added,
            cut=_CUTS[cut],
            ignore_merges=is_llama,
            normalised=cut == "qwen2",
            begin=begin,
        )
    except ValueError as error:
        raise _NotCarried(f"it is not consistent: {error}") from error
    files = {
        "tokenizer.json": content,
        "tokenizer_config.json": _settings_file(metadata, tokens),
    }
    return TokenizerFiles({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "."}, files)


def _sentence_pieces(metadata: Mapping[str, Any], tokens: Sequence[str]) -> TokenizerFiles:
    scores = metadata.get(_KEY + "scores")
    if scores is None or len(scores) != len(tokens):
        raise _NotCarried("it has no scores")
    kinds = _kinds(metadata, tokens)
    model = bytearray()
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        piece = _bytes_field(1, token.encode())
        piece += _key(2, 5) + struct.pack("<f", float(score))
        model += _bytes_field(1, piece + _number_field(3, kind))
    trainer = _number_field(3, 2) + _number_field(4, len(tokens))  # BPE, size
    trainer += _number_field(35, int(_BYTE in kinds))  # unknown characters become bytes
    for field, name in {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}.items():
        number = _special(metadata, tokens, name)
        trainer += _number_field(field, -1 if number is None else number)
    prefix = bool(metadata.get(_KEY + "add_space_prefix", True))
    normalizer = _bytes_field(1, b"identity") + _number_field(3, int(prefix))
    normalizer += _number_field(4, 0) + _number_field(5, 1)  # spaces are kept, as their own sign
    model += _bytes_field(2, trainer) + _bytes_field(3, normalizer)
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor().LoadFromSerializedProto(bytes(model))
    except RuntimeError as error:
        raise _NotCarried(f"it is not consistent: {error}") from error
    files = {
        "tokenizer.model": bytes(model),
        "tokenizer_config.json": _settings_file(metadata, tokens),
    }
    return TokenizerFiles(
        {"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "tokenizer.model"}, files
    )


# The wire format of protocol buffers: a key is field * 8 + wire type, numbers are base 128.


def _base128(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _key(field: int, wire_type: int) -> bytes:
    return _base128(field << 3 | wire_type)


def _number_field(field: int, value: int) -> bytes:
    return _key(field, 0) + _base128(value)


def _bytes_field(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _base128(len(content)) + content

"""Token ranks, as tiktoken stores them and Meta ships them with Llama 3, become a tokenizer.json.

Source: the ranks file of tiktoken (base64 token, space, rank); the special tokens behind the ranks
as Meta's tokenizer.py and, from 3.1 on, its successor name them.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

from megacore.checkpoint.convert.byte_level_json import LLAMA3_CUT, AddedToken, byte_level_json
from megacore.data.tokenizers.byte_level import CHAR_OF_BYTE

NUM_SPECIAL = 256
_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_HEADER = ["<|start_header_id|>", "<|end_header_id|>"]


def read_ranks(path: Path) -> dict[bytes, int] | None:
    """Token -> rank of a file of tiktoken; None when it is something else.

    Raises:
        ValueError: It begins like one, but a line or the order of ranks is wrong.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    if not content[:1].isalnum():
        return None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number}: expected a token in base64 and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks are not 0, 1, 2, ..., each once")
    return ranks


def files_of_ranks(ranks: dict[bytes, int], *, later_names: bool) -> dict[str, Path | bytes]:
    """The files of a Hugging Face tokenizer of Llama 3.

    Args:
        ranks: Token -> rank.
        later_names: Name special tokens as from Llama 3.1 on.

    Raises:
        ValueError: The tokenizers library does not accept it.
    """
    added = [
        AddedToken(len(ranks) + i, name, special=True)
        for i, name in enumerate(_special_names(later_names=later_names))
    ]
    written = {_written(token): rank for token, rank in ranks.items()}
    content = byte_level_json(
        {**written, **{one.content: one.number for one in added}},
        _merges(ranks),
        added=added,
        cut=LLAMA3_CUT,
        ignore_merges=True,
        begin=added[0],
    )
    settings = {"bos_token": _BEGIN, "eos_token": _END, "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }


def _special_names(*, later_names: bool) -> list[str]:
    def reserved(first: int, last: int) -> list[str]:
        return [f"<|reserved_special_token_{i}|>" for i in range(first, last)]

    if later_names:
        names = [_BEGIN, _END, *reserved(0, 2), "<|finetune_right_pad_id|>", *reserved(2, 3)]
        names += [*_HEADER, "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
        return names + reserved(3, 3 + NUM_SPECIAL - len(names))
    names = [_BEGIN, _END, *reserved(0, 4), *_HEADER, *reserved(4, 5), "<|eot_id|>"]
    return names + reserved(5, 5 + NUM_SPECIAL - len(names))


def _written(token: bytes) -> str:
    return "".join(CHAR_OF_BYTE[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Every pair of tokens whose concatenation is a token, in the order of its rank.

    Ranks join any two neighbours that spell a token, the lowest rank first; so all ways to spell
    one are listed.
    """
    merges: list[tuple[str, str]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(_written(a), _written(b)) for a, b in pairs]
    return merges

"""TikTokenizer: a JSON list of ranks run by tiktoken, special tokens in front."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from megacore.data.tokenizers.base import Tokenizer
from megacore.data.tokenizers.files import read_json
from megacore.errors import DataError

DEFAULT_VOCAB_SIZE = 2**17
DEFAULT_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")

# The ways to cut text before encoding that files of this format are trained with.
PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


class TikTokenizer(Tokenizer):
    """tiktoken over a list of {rank, token_bytes, token_str}.

    Ids 0..num_special_tokens-1 are special (those given, then `<SPECIAL_i>`); rank r has the id
    r + num_special_tokens; ranks that do not fit into the vocabulary are left out.

    Args of the constructor:
        model_file: The JSON list; `token_bytes` is base64, the first 256 ranks are the bytes.
        pattern: "v1" or "v2".
        vocab_size: All ids, special ones included; None for 131072.
        num_special_tokens: Ids reserved at the front.
        special_tokens: Names of the first of them, with <unk>, <s> and </s>; None for these three.
    """

    class_name = "CustomTikTokenizer"

    def __init__(
        self,
        model_file: str,
        *,
        pattern: str,
        vocab_size: int | None = None,
        num_special_tokens: int = 1000,
        special_tokens: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            model_file,
            pattern=PATTERNS[pattern],
            vocab_size=vocab_size,
            num_special_tokens=num_special_tokens,
            special_tokens=None if special_tokens is None else list(special_tokens),
        )
        import tiktoken

        self._vocab_size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
        self._offset = num_special_tokens
        names = list(DEFAULT_SPECIAL_TOKENS if special_tokens is None else special_tokens)
        _check_special_tokens(names, self._offset, self._vocab_size)
        names += [f"<SPECIAL_{i}>" for i in range(len(names), self._offset)]
        self._special_names = names
        ranks = _read_ranks(model_file, self._vocab_size - self._offset)
        self._num_ids = self._offset + len(ranks)
        self._encoding = tiktoken.Encoding(
            "ranks", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={}
        )

    @property
    def vocab_size(self) -> int:
        """`--vocab-size`, or 131072."""
        return self._vocab_size

    @property
    def eod(self) -> int:
        """Id of </s>."""
        return self._special_names.index("</s>")

    @property
    def eos(self) -> int:
        """Id of </s>."""
        return self.eod

    @property
    def bos(self) -> int:
        """Id of <s>."""
        return self._special_names.index("<s>")

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; text that looks like a special token is ordinary text."""
        offset = self._offset
        return [rank + offset for rank in self._encoding.encode_ordinary(text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens by their names; DataError for an unused id."""
        parts: list[bytes] = []
        for i in ids:
            if not 0 <= i < self._num_ids:
                raise DataError(
                    f"token id {i} is not in {self._paths[0]} (ids 0 to {self._num_ids - 1})"
                )
            if i < self._offset:
                parts.append(self._special_names[i].encode())
            else:
                parts.append(self._encoding.decode_single_token_bytes(int(i) - self._offset))
        return b"".join(parts).decode("utf-8", "replace")


def _check_special_tokens(names: Sequence[str], num_special: int, vocab_size: int) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"--tiktoken-special-tokens: expected distinct names, got {list(names)}")
    missing = [name for name in DEFAULT_SPECIAL_TOKENS if name not in names]
    if missing:
        raise DataError(f"--tiktoken-special-tokens: {', '.join(missing)} missing in {list(names)}")
    if not len(names) <= num_special < vocab_size:
        raise DataError(
            f"--tiktoken-num-special-tokens {num_special}: expected at least the {len(names)} "
            f"special tokens and less than the vocabulary size {vocab_size}"
        )


def _read_ranks(path: str, limit: int) -> dict[bytes, int]:
    entries = read_json(path, "tiktoken vocabulary")
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{path}: expected a JSON list of rank, token_bytes and token_str, "
            f"found {type(entries).__name__}"
        )
    ranks: dict[bytes, int] = {}
    for i, entry in enumerate(entries[:limit]):
        if not isinstance(entry, dict) or entry.keys() != {"rank", "token_bytes", "token_str"}:
            raise DataError(
                f"{path}: entry {i}: expected rank, token_bytes and token_str, found {entry!r:.120}"
            )
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (TypeError, binascii.Error) as error:
            raise DataError(
                f"{path}: entry {i}: expected token_bytes in base64, "
                f"found {entry['token_bytes']!r:.80}"
            ) from error
        if entry["rank"] != i:
            raise DataError(f"{path}: entry {i}: expected rank {i}, found {entry['rank']!r}")
        if i < 256 and token != bytes([i]):
            raise DataError(f"{path}: entry {i}: expected byte {i} alone, found {token!r:.80}")
        if token in ranks:
            raise DataError(f"{path}: entry {i}: the token {token!r:.80} is rank {ranks[token]}")
        ranks[token] = i
    if len(ranks) < 256:
        raise DataError(
            f"{path}: expected at least the 256 bytes, found {len(ranks)} entries"
            + (f" below the vocabulary size (room for {limit})" if limit < 256 else "")
        )
    return ranks

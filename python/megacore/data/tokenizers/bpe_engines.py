"""The libraries that can run a byte-level BPE, behind one method: `encode(texts) -> ids`.

tiktoken is the fastest that is always there; `tokenizers` runs every pair of files; gigatoken is
faster than both, young, and optional, so it has to prove itself on a sample first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from megacore.data.tokenizers.base import flatten
from megacore.data.tokenizers.byte_level import BYTE_OF_CHAR, END_OF_TEXT, ByteLevelFiles
from megacore.data.tokenizers.merge_order import NUM_BYTES, first_ambiguous_merge
from megacore.errors import DataError

# The published GPT-2 pattern, with possessive repeats (no alternative can give characters back)
# and the run of spaces at the end of the text told apart; both only save time.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# What gigatoken has to encode as tokenizers does before it is trusted with a vocabulary: every
# rule of the pattern, several scripts, combining marks, control characters, long runs.
_PROBES = (
    "",
    "It's a test: we'll see, they've said 'tis I'd can't WE'RE 3rd 1234567 x=y+z; a_b-c/d\\e",
    "tabs\tand  double   spaces    \n\n newline \r\n\r carriage \v\f form \x00 nul \x1c\x1f\x7f",
    "caf\u00e9 na\u00efve e\u0301 \u00df \u0130 \u017f stra\u00dfe \u00a0nbsp\u3000wide\u2028line",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb \u4e2d\u6587\u5b57 "
    "\u65e5\u672c \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631 \u0939\u093f\u0928",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2167 \u00b2\u00bd \u0661\u0662",
    "<|endoftext|> <|endoftext|>text",
    "a" * 3000 + " " * 500 + "=" * 700 + "\n" * 90,
    " trailing   ",
)


class BPEEngine(ABC):
    """Something that encodes texts with one fixed vocabulary."""

    name: str

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text; text that looks like a special token is ordinary text."""

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after the other, int64, and their number in each, int64."""
        return flatten(self.encode(texts))


class TiktokenEngine(BPEEngine):
    """tiktoken over ranks in merge order; ids are looked up afterwards.

    Raises:
        DataError: The merges cannot be told by ranks alone (see merge_order).
    """

    name = "tiktoken"

    def __init__(self, files: ByteLevelFiles) -> None:
        import tiktoken

        rank_of = dict(BYTE_OF_CHAR)
        bytes_of = {char: bytes([byte]) for char, byte in BYTE_OF_CHAR.items()}
        lefts, rights = list(range(NUM_BYTES)), list(range(NUM_BYTES))
        for rank, (left, right) in enumerate(files.merges, start=NUM_BYTES):
            if left not in rank_of or right not in rank_of:
                part = left if left not in rank_of else right
                raise DataError(f"merge {left!r} {right!r} uses {part!r} before it is made")
            token = left + right
            if token in rank_of:
                raise DataError(f"token {token!r} is made by two merges")
            lefts.append(rank_of[left])
            rights.append(rank_of[right])
            rank_of[token] = rank
            bytes_of[token] = bytes_of[left] + bytes_of[right]
        ambiguous = first_ambiguous_merge(lefts, rights)
        if ambiguous is not None:
            left, right = files.merges[ambiguous - NUM_BYTES]
            raise DataError(
                f"merge {left!r} {right!r} is never reached: its parts are joined otherwise before"
            )
        self._encoding = tiktoken.Encoding(
            "byte_level_bpe",
            pat_str=GPT2_PATTERN,
            mergeable_ranks={bytes_of[token]: rank for token, rank in rank_of.items()},
            special_tokens={},
        )
        ids = [-1] * len(rank_of)
        for token, rank in rank_of.items():
            ids[rank] = files.vocab.get(token, -1)
        self._id_of_rank = ids
        self._id_table = np.array(ids, dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        encode, id_of = self._encoding.encode_ordinary, self._id_of_rank.__getitem__
        return [list(map(id_of, encode(text))) for text in texts]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after the other."""
        encode = self._encoding.encode_ordinary
        ranks, lengths = flatten([encode(text) for text in texts])
        return self._id_table[ranks], lengths


class TokenizersEngine(BPEEngine):
    """The `tokenizers` library, which runs the merges as they are written."""

    name = "tokenizers"

    def __init__(self, files: ByteLevelFiles) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        self._tokenizer = Tokenizer(models.BPE(vocab=files.vocab, merges=files.merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def to_json(self) -> str:
        """The tokenizer in the tokenizer.json format."""
        return str(self._tokenizer.to_str())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        encode = self._tokenizer.encode
        return [encode(text, add_special_tokens=False).ids for text in texts]


class GigatokenEngine(BPEEngine):
    """gigatoken, used only when it agrees with `tokenizers` on a sample of awkward text.

    Raises:
        DataError: The package is not installed, or it gives other ids.
    """

    name = "gigatoken"

    def __init__(self, files: ByteLevelFiles) -> None:
        try:
            import gigatoken
        except ImportError as error:
            raise DataError(
                "--tokenizer-backend gigatoken needs the package gigatoken "
                "(pip install gigatoken); without it use --tokenizer-backend auto"
            ) from error
        reference = TokenizersEngine(files)
        self._tokenizer = gigatoken.Tokenizer.from_json(reference.to_json())
        probes = [*_PROBES, " ".join(list(files.vocab)[:2000])]
        for text, expected, found in zip(
            probes, reference.encode(probes), self.encode(probes), strict=True
        ):
            if expected != found:
                raise DataError(
                    "gigatoken does not give the ids of tokenizers for this vocabulary "
                    f"(text {text[:40]!r}: {found[:8]} instead of {expected[:8]}); "
                    "use --tokenizer-backend auto"
                )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        encoded: list[list[int]] = self._tokenizer.encode_batch_list(list(texts), parallel=False)
        return encoded


def build_engine(files: ByteLevelFiles, backend: str) -> BPEEngine:
    """The engine that was asked for.

    Args:
        files: Vocabulary and merges.
        backend: "auto" (tiktoken when it can represent the files, else tokenizers), or the name
            of one engine.

    Raises:
        DataError: The engine that was named cannot run these files.
    """
    if backend == "gigatoken":
        return GigatokenEngine(files)
    if backend in ("auto", "tiktoken"):
        try:
            return TiktokenEngine(files)
        except DataError as error:
            if backend == "tiktoken":
                raise DataError(
                    f"--tokenizer-backend tiktoken cannot run these merges: {error}; "
                    "use --tokenizer-backend tokenizers"
                ) from error
    return TokenizersEngine(files)


def special_tokens(files: ByteLevelFiles) -> dict[str, int]:
    """Tokens that no merge and no single byte makes, such as <|endoftext|>."""
    made = {left + right for left, right in files.merges}
    return {
        token: i
        for token, i in files.vocab.items()
        if token == END_OF_TEXT or (token not in made and token not in BYTE_OF_CHAR)
    }

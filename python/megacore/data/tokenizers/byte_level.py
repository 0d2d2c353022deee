"""GPT-2's way of writing bytes as characters, and the two files of a byte-level BPE.

`vocab.json` maps every token to its id; `merges.txt` lists the pairs that are joined, best first.
Both write a token as one printable character per byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacore.data.tokenizers.files import read_json, read_text
from megacore.errors import DataError

END_OF_TEXT = "<|endoftext|>"


def _byte_alphabet() -> dict[str, int]:
    # Printable Latin-1 characters stand for themselves; the other bytes, in order, for the
    # characters from code point 256 on. The order of this mapping is GPT-2's order of ids.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet.values()]
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


BYTE_OF_CHAR = _byte_alphabet()
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


@dataclass(frozen=True)
class ByteLevelFiles:
    """A byte-level BPE as it stands in its two files.

    Attributes:
        vocab: Token as written in the file -> id; the ids are 0..len-1.
        merges: Pairs of tokens as written, the most urgent first.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]


def read_byte_level_files(vocab_file: str, merge_file: str) -> ByteLevelFiles:
    """Read and check vocab.json and merges.txt.

    Raises:
        DataError: A file cannot be read, has another format, or the two do not belong together.
    """
    vocab = read_vocab(vocab_file)
    merges = read_merges(merge_file)
    for line, (left, right) in enumerate(merges, start=1):
        for token in (left, right, left + right):
            if token not in vocab:
                raise DataError(
                    f"{merge_file}: merge {line} ({left!r} {right!r}) needs the token {token!r}, "
                    f"which {vocab_file} does not have; do the two files belong together?"
                )
    return ByteLevelFiles(vocab, merges)


def read_vocab(path: str) -> dict[str, int]:
    """Token -> id of a vocab.json; DataError unless the ids are 0..len-1, each once."""
    vocab = read_json(path, "vocabulary (vocab.json)")
    if not isinstance(vocab, dict) or not vocab:
        raise DataError(
            f"{path}: expected a vocabulary, one JSON object of token -> id, "
            f"found {type(vocab).__name__}"
        )
    wrong = next(
        (token for token, i in vocab.items() if not isinstance(i, int) or isinstance(i, bool)), None
    )
    if wrong is not None:
        raise DataError(
            f"{path}: expected an integer id for every token, "
            f"found {vocab[wrong]!r:.80} for {wrong!r}"
        )
    if len(set(vocab.values())) != len(vocab) or not (
        min(vocab.values()) == 0 and max(vocab.values()) == len(vocab) - 1
    ):
        raise DataError(
            f"{path}: expected the ids 0 to {len(vocab) - 1}, each once, for {len(vocab)} tokens; "
            f"found {len(set(vocab.values()))} distinct ids from {min(vocab.values())} "
            f"to {max(vocab.values())}"
        )
    return vocab


def read_merges(path: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt in order; its version line and empty lines are skipped."""
    merges = []
    for number, line in enumerate(read_text(path, "BPE merges").split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise DataError(
                f"{path}: line {number}: expected two tokens separated by one space, "
                f"found {line!r:.80}"
            )
        merges.append((pair[0], pair[1]))
    return merges

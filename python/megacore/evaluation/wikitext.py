"""WIKITEXT103: perplexity of a text in overlapping windows, per word of its own tokenisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError
from megacore.evaluation.detokenize import DETOKENIZERS, detokenizer_of
from megacore.evaluation.files import read_text
from megacore.evaluation.scoring import Span

# exp of more would say nothing.
_MAX_EXPONENT = 20.0


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """A text as a model sees it.

    Attributes:
        tokens: Ids of the whole text.
        num_words: Pieces between single blanks of the text as it was published.
        remarks: What was chosen where the path says nothing.
    """

    tokens: Sequence[int]
    num_words: int
    remarks: tuple[str, ...] = ()


def read_token_text(path: str, tokenizer: Tokenizer) -> TokenText:
    """Reads a published text, undoes its tokenisation and encodes it in one piece.

    Args:
        path: The file; `ptb`, `wiki` or `lambada` in it chooses the rules, otherwise WikiText's.
        tokenizer: The model's.

    Raises:
        DataError: The file cannot be read, or has nothing to predict.
    """
    text = read_text(Path(path))
    found = detokenizer_of(path)
    remarks: tuple[str, ...] = ()
    if found is None:
        found = "wiki", DETOKENIZERS["wiki"]
        names = ", ".join(DETOKENIZERS)
        remarks = (f"note: the path names none of {names}: detokenised by the rules of wiki",)
    tokens = tokenizer.tokenize(found[1](text))
    num_words = len(text.strip().split(" "))
    if len(tokens) < 2 or num_words < 2:
        raise DataError(
            f"{path}: expected text of two words at least, found {len(tokens)} tokens in "
            f"{num_words} words"
        )
    return TokenText(tokens=tokens, num_words=num_words, remarks=remarks)


def windows(tokens: Sequence[int], *, length: int, step: int) -> Iterator[Span]:
    """Windows in which every token but the first is scored exactly once.

    The first window scores all of its tokens, each later one its last `step`, which thus have a
    context of at least `length - step` tokens.

    Args:
        tokens: At least two.
        length: Tokens that a window lets the model see.
        step: From one window to the next; at most `length`.
    """
    scored_to = 0
    for start in range(0, len(tokens), step):
        end = min(start + length, len(tokens) - 1)
        if end > scored_to:
            yield Span(tokens[start : end + 1], end - scored_to)
            scored_to = end
        if scored_to == len(tokens) - 1:
            return


def report(loss: float, text: TokenText) -> str:
    """The line of results.

    Args:
        loss: Sum of the losses of all tokens but the first, in nats.
        text: What was scored.
    """
    num_scored = len(text.tokens) - 1
    average = loss / num_scored
    ratio = num_scored / (text.num_words - 1)
    perplexity = math.exp(min(_MAX_EXPONENT, average))
    adjusted = math.exp(min(_MAX_EXPONENT, average * ratio))
    return (
        f"avg loss: {average:.4E} | ppl: {perplexity:.4E} | adjusted ppl: {adjusted:.4E} | "
        f"token ratio: {ratio} |"
    )

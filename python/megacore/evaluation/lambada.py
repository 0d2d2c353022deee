"""LAMBADA: whether a model predicts the last word of a passage."""

from __future__ import annotations

from pathlib import Path

from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError
from megacore.evaluation.files import read_json_lines, text_field
from megacore.evaluation.scoring import Span


def read_passages(path: str, tokenizer: Tokenizer, *, strict: bool, length: int) -> list[Span]:
    """Passages of a file of JSON lines with `text`; what is to be predicted is scored.

    Args:
        path: The file.
        tokenizer: The model's.
        strict: The target is the last word with a blank before it, behind the text before its
            last occurrence; otherwise the last token of the passage.
        length: Tokens that the model may see; longer contexts lose their beginning.

    Raises:
        DataError: The file cannot be read, or a passage has no context or no target that fits.
    """
    spans = [
        _span(text_field(record, "text", place), tokenizer, strict, length, place)
        for place, record in read_json_lines(Path(path))
    ]
    if not spans:
        raise DataError(f"{path}: empty")
    return spans


def _span(text: str, tokenizer: Tokenizer, strict: bool, length: int, place: str) -> Span:
    if strict:
        words = text.split()
        if len(words) < 2:
            raise DataError(f"{place}: expected a passage of two words at least, found {text!r}")
        context = tokenizer.tokenize(text[: text.rfind(words[-1])].strip())
        target = tokenizer.tokenize(" " + words[-1])
    else:
        tokens = tokenizer.tokenize(text)
        context, target = tokens[:-1], tokens[-1:]
    if not context or not target:
        raise DataError(f"{place}: a context and a word to predict are needed, found {text!r}")
    if len(target) > length:
        raise DataError(
            f"{place}: the last word has {len(target)} tokens, the model sees only {length}"
        )
    kept = length + 1 - len(target)
    return Span([*context[-kept:], *target], len(target))


def report(num_correct: float, num_examples: int) -> str:
    """The line of results."""
    return (
        f"number correct: {num_correct:.4E} | total examples: {num_examples:.4E} | "
        f"avg accuracy: {num_correct / num_examples:.4E}"
    )

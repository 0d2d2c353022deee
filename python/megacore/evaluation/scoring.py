"""Log probabilities of given tokens under a GPT, computed only where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.models.gpt import GPTModel

# Positions whose logits exist at the same time: with 50,000 tokens 200 MB in float32.
_POSITIONS_AT_ONCE = 1024


@dataclass(frozen=True)
class Span:
    """A sequence of which the last tokens are scored.

    Attributes:
        tokens: Ids; at least one comes before those that are scored.
        num_scored: How many at the end are scored, each given all before it; may be 0.
    """

    tokens: Sequence[int]
    num_scored: int


@dataclass(frozen=True)
class Score:
    """What a model makes of the scored tokens of a span.

    Attributes:
        log_probs: Natural logarithm of the probability of each scored token.
        is_greedy: Whether every scored token is the most likely one at its place.
    """

    log_probs: list[float]
    is_greedy: bool

    @property
    def total(self) -> float:
        """Log probability of all scored tokens together."""
        return sum(self.log_probs)


@torch.inference_mode()
def score_spans(model: GPTModel, spans: Sequence[Span], *, vocab_size: int) -> list[Score]:
    """Scores some sequences in one pass of the model.

    Sequences of different lengths are padded on the right, which no token before can see. Logits
    are computed for scored positions only, probabilities in float32 (float64 for a float64 model)
    over the vocabulary without padding rows.

    Args:
        model: In eval mode.
        spans: Sequences, none longer than the positions of the model by more than one: the last
            token is only a target.
        vocab_size: Ids of the tokenizer; every token is smaller.

    Returns:
        One score per span.
    """
    device = next(model.parameters()).device
    width = max((len(span.tokens) for span in spans), default=0) - 1
    if width < 1 or not any(span.num_scored for span in spans):
        return [Score([], is_greedy=True) for _ in spans]
    padded = [[*span.tokens[:-1], *[0] * (width + 1 - len(span.tokens))] for span in spans]
    tokens = torch.tensor(padded, dtype=torch.int64, device=device)
    rows, columns, targets = _places(spans)
    log_probs: list[float] = []
    hits: list[bool] = []
    hidden = model.hidden_states(tokens)
    for first in range(0, len(rows), _POSITIONS_AT_ONCE):
        part = slice(first, first + _POSITIONS_AT_ONCE)
        logits = model.logits(hidden[rows[part], columns[part]])[:, :vocab_size]
        wanted = torch.tensor(targets[part], dtype=torch.int64, device=device)
        values, found = _scored(logits, wanted)
        log_probs += values.tolist()
        hits += found.tolist()
    return list(_divided(spans, log_probs, hits))


def _places(spans: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """Row, position of the token before, and id of every scored token."""
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, span in enumerate(spans):
        length = len(span.tokens)
        rows += [row] * span.num_scored
        columns += range(length - span.num_scored - 1, length - 1)
        targets += span.tokens[length - span.num_scored :]
    return rows, columns, targets


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    chosen = wide.gather(1, targets[:, None])[:, 0]
    return chosen - wide.logsumexp(1), wide.argmax(1) == targets


def _divided(
    spans: Sequence[Span], log_probs: Sequence[float], hits: Sequence[bool]
) -> Iterator[Score]:
    first = 0
    for span in spans:
        last = first + span.num_scored
        yield Score(list(log_probs[first:last]), is_greedy=all(hits[first:last]))
        first = last

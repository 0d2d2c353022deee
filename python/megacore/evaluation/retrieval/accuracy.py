"""How often an answer is among the best passages: RETRIEVER-EVAL and ICT-ZEROSHOT-NQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from megacore.errors import DataError
from megacore.evaluation.retrieval.answers import has_answer
from megacore.evaluation.retrieval.evidence import Evidence, Question
from megacore.evaluation.retrieval.loading import Encoders
from megacore.evaluation.retrieval.store import EmbeddingStore

_DEFAULT_REPORTED = (1, 5, 20, 100)


def retriever_accuracy(
    encoders: Encoders,
    store: EmbeddingStore,
    evidence: Sequence[Evidence],
    questions: Sequence[Question],
    *,
    match: str,
    count: int,
    reported: Sequence[int],
    batch_size: int,
) -> dict[int, float]:
    """Share of questions that one of the best k passages answers, for each k.

    Args:
        encoders: Encode the questions.
        store: Vectors of the evidence.
        evidence: The passages themselves.
        questions: At least one.
        match: "string" or "regex"; see `has_answer`.
        count: Passages that are looked at for each question.
        reported: The k; those beyond `count` are left out. By default 1, 5, 20 and 100.
        batch_size: Questions in one pass.

    Returns:
        k -> share in [0, 1].

    Raises:
        DataError: The vectors are of other passages.
    """
    passages = {passage.number: passage for passage in evidence}
    unknown = [number for number in store.ids.tolist() if number not in passages]
    if unknown:
        raise DataError(
            f"the index has id {unknown[0]}, the evidence has not: make the index again"
        )
    count = min(count, len(store.ids))
    # Questions -> place of the first passage with an answer, or `count` when there is none.
    places: list[int] = []
    for first in range(0, len(questions), batch_size):
        part = questions[first : first + batch_size]
        found, _ = store.search(encoders.questions([q.text for q in part]), count)
        for question, numbers in zip(part, found.tolist(), strict=True):
            answered = (
                place
                for place, number in enumerate(numbers)
                if has_answer(passages[number].text, question.answers, match=match)
            )
            places.append(next(answered, count))
    ranks = np.array(places)
    wanted = sorted({k for k in (reported or _DEFAULT_REPORTED) if k <= count} or {count})
    return {k: float((ranks < k).mean()) for k in wanted}


def report(name: str, shares: dict[int, float], say: Callable[[str], None]) -> None:
    """A line for each k."""
    say(f"{name} SET RESULTS")
    for k, share in shares.items():
        say(f"top-{k} accuracy: {100.0 * share:.2f} %")

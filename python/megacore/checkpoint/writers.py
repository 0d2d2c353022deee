"""The processes that write one checkpoint together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from megacore.errors import CheckpointError


class Writers(Protocol):
    """What the writers of a checkpoint need of each other."""

    @property
    def rank(self) -> int:
        """Which of them this process is."""

    @property
    def size(self) -> int:
        """How many there are."""

    def exchange(self, value: Any) -> list[Any]:
        """The values, which JSON can hold, that all of them gave, in order; all must call it."""


@dataclass(frozen=True)
class Alone:
    """One process that writes everything."""

    rank: int = 0
    size: int = 1

    def exchange(self, value: Any) -> list[Any]:
        """Its own value."""
        return [value]


def together(writers: Writers, work: Callable[[], Any]) -> list[Any]:
    """Does the own share of some work; goes on only when all have done theirs.

    Args:
        writers: The processes.
        work: Own share: returns what the others are told, as JSON can hold it, or raises
            CheckpointError when it cannot be done.

    Returns:
        What every process told, in order.

    Raises:
        CheckpointError: One of them failed; every process gets the error, those that did not fail
            with the rank of the one that did.
    """
    failure: CheckpointError | None = None
    told: dict[str, Any]
    try:
        told = {"value": work()}
    except CheckpointError as error:
        failure, told = error, {"error": str(error)}
    answers = writers.exchange(told)
    if failure is not None:
        raise failure
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise CheckpointError(f"rank {rank}: {answer['error']}")
    return [answer["value"] for answer in answers]

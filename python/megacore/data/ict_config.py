"""Settings of the inverse cloze task's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class IctConfig:
    """Where titles are, and what becomes of the query."""

    GROUP: ClassVar[str] = "inverse cloze task"

    titles_data_path: str | None = flag(
        "--titles-data-path",
        default=None,
        help="dataset with one title per document of the blocks' dataset",
    )
    query_in_block_prob: float = flag(
        "--query-in-block-prob",
        default=0.1,
        help="probability that the query sentence stays in its block",
        bounds="[0, 1]",
    )
    use_one_sent_docs: bool = flag(
        "--use-one-sent-docs", default=False, help="use documents of one sentence too"
    )

    def faults(self) -> Iterator[Fault]:
        """Rules that the values alone break."""
        yield from value_faults(self)

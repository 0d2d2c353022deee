"""What tells one kind of dataset from another, for the machinery of splits, blends and caches.

A *source* is an opened dataset. It is divided by `--split` into parts, of which each becomes the
samples of one member of a blend (or of the only dataset).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from megacore.data.config import DataConfig
from megacore.data.tokenizers import Tokenizer


class Source(Protocol):
    """An opened dataset."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def path(self) -> str | None:
        """Prefix of the dataset; None for made-up data."""

    @property
    def num_elements(self) -> int:
        """How many things a split divides."""


class SampleSet(Protocol):
    """The samples of one split of one dataset, or of a blend."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the samples depend on."""

    @property
    def sequence_length(self) -> int:
        """Tokens of a sample."""

    @property
    def gather(self) -> Callable[..., None]:
        """Fills rows of a batch: gather(samples [n], rows [n], vocab_size=..., **arrays)."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """One sample."""


@dataclass(frozen=True)
class Part:
    """What of a source becomes a dataset.

    Attributes:
        split: train, valid or test.
        first: First element.
        last: The one behind the last.
        num_samples: How many are wanted at least; None for one epoch.
        seed: Of all random choices.
        identity: What the samples depend on, in order; the first key is "class".
        cache: Folder of index files; None to keep them in memory.
        may_build: False: only load index files that another process has written.
    """

    split: str
    first: int
    last: int
    num_samples: int | None
    seed: int
    identity: dict[str, Any]
    cache: Path | None
    may_build: bool


AnySource = TypeVar("AnySource", bound=Source)


class DatasetKind(ABC, Generic[AnySource]):
    """A kind of dataset.

    Attributes:
        class_name: Under which its index files are cached.
        elements: What a split divides.
    """

    class_name: ClassVar[str]
    elements: ClassVar[str] = "sequences"

    def check(self, data: DataConfig, tokenizer: Tokenizer) -> None:
        """Refuses settings and vocabularies that this kind cannot work with.

        Raises:
            DataError: It cannot; the message says what to change.
        """

    @abstractmethod
    def open(self, prefix: str, data: DataConfig) -> AnySource:
        """Opens the files of a prefix; DataError for damaged files or ones of another kind."""

    @abstractmethod
    def mock(self, tokenizer: Tokenizer) -> AnySource:
        """Made-up data, the same on every machine."""

    @abstractmethod
    def member(
        self, source: AnySource, part: Part, data: DataConfig, tokenizer: Tokenizer
    ) -> SampleSet:
        """Samples of a part of a source; DataError when it holds none."""

"""Samples of several datasets, mixed in given proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacore import _C
from megacore.data.gpt_dataset import Sample
from megacore.data.index_cache import Arrays, ArraySpec, IndexFiles
from megacore.data.kinds import SampleSet
from megacore.errors import DataError

# Megatron's limit: dataset numbers are stored in 16 bits.
MAX_MEMBERS = 32766


class BlendedDataset:
    """A blend of datasets.

    Args:
        members: The datasets.
        weights: Normalised weights, or the number of samples of every member when `size` is None
            or the members are to be used in proportion to their size.
        size: Number of samples; None: every sample of every member once.
        split: train, valid or test.
        renormalize: Only part of the identity.
        cache: Folder of index files; None to keep them in memory.
        may_build: False: only load index files that another process has written.

    Raises:
        DataError: There are too many members, or one is too short for its weight.
    """

    def __init__(
        self,
        members: Sequence[SampleSet],
        *,
        weights: Sequence[float],
        size: int | None,
        split: str,
        renormalize: bool,
        cache: Path | None,
        may_build: bool = True,
    ) -> None:
        if len(members) > MAX_MEMBERS:
            raise DataError(
                f"a blend can hold {MAX_MEMBERS} datasets, found {len(members)}: merge some "
                "(megacore merge)"
            )
        self.members = list(members)
        self.name = f"blend of {len(members)} datasets, {split} split"
        self.sequence_length = members[0].sequence_length
        shares = np.asarray(weights, dtype=np.float64)
        shares = shares / np.sum(shares)
        lengths = [len(member) for member in members]
        total = sum(lengths) if size is None else size
        self.identity = {
            "class": "BlendedDataset",
            "datasets": [member.identity for member in members],
            "split": split,
            "weights": shares.tolist(),
            "size": size,
            "renormalize_blend_weights": renormalize,
        }

        def build() -> Arrays:
            if size is None:
                built = _C.data.build_exhaustive_blend(np.asarray(lengths, dtype=np.int64))
            else:
                built = _C.data.build_blend(shares, size)
            return {"dataset_index": built[0], "dataset_sample_index": built[1]}

        specs = {
            "dataset_index": ArraySpec(np.dtype(np.int16), (total,)),
            "dataset_sample_index": ArraySpec(np.dtype(np.int64), (total,)),
        }
        if cache is None:
            arrays = build()
        else:
            files = IndexFiles.describe(cache, self.identity, split)
            arrays = files.load_or_build(specs, build, may_build=may_build)
        self.dataset_index: NDArray[np.int16] = arrays["dataset_index"]
        self.dataset_sample_index: NDArray[np.int64] = arrays["dataset_sample_index"]
        self._check_lengths(split)

    def _check_lengths(self, split: str) -> None:
        taken = np.bincount(self.dataset_index, minlength=len(self.members))
        for member, count in zip(self.members, taken.tolist(), strict=True):
            if count > len(member):
                raise DataError(
                    f"the {split} blend oversamples {member.name}: it wants {count} samples of "
                    f"{len(member)}; use --renormalize-blend-weights"
                )

    def __len__(self) -> int:
        return len(self.dataset_index)

    @property
    def first(self) -> Any:
        """The first member, whose kind and rules are those of all."""
        return self.members[0]

    @property
    def rules(self) -> Any:
        """What is derived from the tokens of a sample."""
        return self.first.rules

    def gather(
        self,
        samples: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        vocab_size: int,
        **arrays: NDArray[Any],
    ) -> None:
        """Fills rows of a batch, as the members' `gather` does."""
        which = self.dataset_index[samples]
        inner = self.dataset_sample_index[samples]
        for number in np.unique(which):
            chosen = which == number
            self.members[number].gather(
                inner[chosen], rows[chosen], vocab_size=vocab_size, **arrays
            )

    def __getitem__(self, index: int | None) -> Any:
        if index is None:  # the first one with no loss on it, to fill up a batch
            return self[0].without_loss()
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.name}")
        member = int(self.dataset_index[index])
        sample = self.members[member][int(self.dataset_sample_index[index])]
        return replace(sample, dataset_id=member) if isinstance(sample, Sample) else sample

"""Blends: several datasets in one, as --data-path and its companions describe them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacore.errors import DataError

# A member is asked for a little more than its share, since the shares are met only roughly.
_MARGIN = 1.005


@dataclass(frozen=True)
class Blend:
    """Members of a blend.

    Attributes:
        prefixes: Dataset prefixes.
        weights: Their normalised weights, or None when each is to be used up.
    """

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None

    @property
    def is_single(self) -> bool:
        """Whether this is one dataset without a weight, which needs no blending."""
        return len(self.prefixes) == 1 and self.weights is None

    def samples_of_members(self, num_samples: int) -> list[int | None]:
        """How many samples to ask of every member; None: all of one epoch."""
        if self.weights is None:
            return [None] * len(self.prefixes)
        return [math.ceil(num_samples * weight * _MARGIN) for weight in self.weights]


def parse_blend(words: Sequence[str], *, flag: str) -> Blend:
    """Reads PREFIX ..., or WEIGHT PREFIX WEIGHT PREFIX ...

    Args:
        words: What the flag was given.
        flag: Its name, for messages.

    Raises:
        DataError: The words are neither, or the weights cannot be used.
    """
    if not words:
        raise DataError(f"{flag}: expected at least one dataset prefix")
    prefixes = [word.strip() for word in words]
    if len(prefixes) % 2:
        return Blend(tuple(prefixes), None)
    weights: list[float] = []
    for word in prefixes[::2]:
        try:
            weights.append(float(word))
        except ValueError:
            continue
    if not weights:
        return Blend(tuple(prefixes), None)
    if len(weights) != len(prefixes) // 2:
        raise DataError(
            f"{flag}: expected WEIGHT PREFIX pairs or only prefixes, found a mixture: "
            + " ".join(words)
        )
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights) or sum(weights) <= 0:
        raise DataError(f"{flag}: expected weights >= 0, not all of them 0, found {weights}")
    array = np.asarray(weights, dtype=np.float64)
    return Blend(tuple(prefixes[1::2]), tuple((array / np.sum(array)).tolist()))

"""Which part of a dataset is for training, which for validation and which for test."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from megacore.errors import DataError

SPLITS = ("train", "valid", "test")

# Lower and upper bound of each split as shares of the dataset; None for a split of no size.
SplitMatrix = list[tuple[float, float] | None]


def split_matrix(split: str) -> SplitMatrix:
    """Bounds of the splits that a text such as "969, 30, 1" describes.

    Any characters separate the numbers. They are made to sum to 1 and added up in float64; the
    lower bound of the first split is the integer 0, which matters for the hash of index files.

    Raises:
        DataError: There are not one to three numbers, or all of them are 0.
    """
    words = re.findall(r"[.0-9]+", split)
    try:
        shares = [float(word) for word in words]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= len(SPLITS) or sum(shares) <= 0.0:
        raise DataError(
            f"--split {split!r}: expected one to three numbers, not all of them 0, such as 969,30,1"
        )
    shares += [0.0] * (len(SPLITS) - len(shares))
    weights = np.asarray(shares, dtype=np.float64)
    bounds: list[float] = [0]
    for share in (weights / np.sum(weights)).tolist():
        bounds.append(bounds[-1] + share)
    return [(low, high) if low != high else None for low, high in pairwise(bounds)]


def element_range(bounds: tuple[float, float], num_elements: int) -> tuple[int, int]:
    """First element of a split and the one behind its last; halves are rounded to even."""
    return round(bounds[0] * num_elements), round(bounds[1] * num_elements)


def split_ranges(split: str, num_elements: int) -> list[tuple[int, int]]:
    """Element ranges [first, last) of training, validation and test; equal for an empty split."""
    return [
        (0, 0) if bounds is None else element_range(bounds, num_elements)
        for bounds in split_matrix(split)
    ]

"""From measured steps to factors of groups of constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

# How strongly factors are drawn to 1, relative to an error of 100% of one step.
_PULL = 0.02
_ROUNDS = 2000


def fit_scales(parts: Sequence[Mapping[str, float]], measured: Sequence[float]) -> dict[str, float]:
    """Factors of the parts of estimates that make their sums the measured times.

    The least squares of the relative errors of all sums and of the factors' distances from 1, with
    factors that are not negative, by coordinate descent.

    Args:
        parts: For each measurement, name -> seconds that were estimated.
        measured: Seconds.

    Returns:
        Name -> factor; 1 where no measurement has the part.
    """
    names = sorted({name for row in parts for name in row})
    matrix = torch.tensor(
        [
            [row.get(name, 0.0) / time for name in names]
            for row, time in zip(parts, measured, strict=True)
        ],
        dtype=torch.float64,
    )
    gram = matrix.t() @ matrix + _PULL**2 * torch.eye(len(names), dtype=torch.float64)
    aim = matrix.sum(0) + _PULL**2
    factors = torch.ones(len(names), dtype=torch.float64)
    for _ in range(_ROUNDS):
        for i in range(len(names)):
            rest = aim[i] - gram[i] @ factors + gram[i, i] * factors[i]
            factors[i] = max(0.0, float(rest / gram[i, i]))
    return dict(zip(names, factors.tolist(), strict=True))

"""The tokens of a file of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenizedChats:
    """The texts of one file.

    Attributes:
        path: The file.
        tokens: int32 [all tokens].
        learned: uint8 [all tokens].
        bounds: int64 [texts + 1], where each text begins; the last is the end.
        lines: int64 [texts], the line of each.
    """

    path: Path
    tokens: NDArray[np.int32]
    learned: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

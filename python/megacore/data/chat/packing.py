"""Which texts go into which sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Sequences that are being filled at the same time.
_OPEN = 64


@dataclass(frozen=True)
class Packing:
    """Texts by sequence.

    Attributes:
        texts: int64 [placed texts], in the order of the sequences.
        bounds: int64 [sequences + 1], where the texts of each begin.
    """

    texts: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1


def pack(lengths: NDArray[np.int64], *, room: int, seed: int, epoch: int) -> Packing:
    """Shuffles texts and packs them into sequences.

    Each text goes into that of a few open sequences which it leaves the least room in; when it
    fits into none, the fullest is closed. The result depends on the arguments only.

    Args:
        lengths: int64 [texts], positions that each takes, 1 to `room`.
        room: Positions of a sequence.
        seed: Of the run.
        epoch: Of the pass over the texts, which is shuffled anew in each.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(lengths))
    left = np.zeros(0, dtype=np.int64)
    filling: list[list[int]] = []
    closed: list[list[int]] = []
    for text in order.tolist():
        size = int(lengths[text])
        rest = np.where(left >= size, left - size, room + 1)
        if len(left) and rest.min() <= room:
            place = int(rest.argmin())
        elif len(left) < _OPEN:
            place = len(left)
            left = np.append(left, room)
            filling.append([])
        else:
            place = int(left.argmin())
            closed.append(filling[place])
            filling[place], left[place] = [], room
        filling[place].append(text)
        left[place] -= size
    closed += filling
    counts = [len(texts) for texts in closed]
    flat = [text for texts in closed for text in texts]
    return Packing(
        np.array(flat, dtype=np.int64),
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
    )

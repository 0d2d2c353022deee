"""When a BPE given by merges can be run by an engine that only knows the rank of each token.

A rank engine (tiktoken) joins any two neighbours whose concatenation is a token, lowest rank
first. A merge engine (merges.txt) joins only the listed pairs. The two agree on every text if

1. no token is made by two merges,
2. the parts of a merge are single bytes or tokens made by earlier merges, and
3. running the merges before number r on the bytes of token r leaves exactly its two parts.

Condition 3 makes the listed pair the only pair of neighbours that can ever spell the token:
nothing was joined across the outer borders of such a pair, so what happened inside it is what
happens to the token's bytes alone. Vocabularies made by training satisfy all three; edited or
concatenated ones may not.
"""

from __future__ import annotations

from collections.abc import Sequence

NUM_BYTES = 256


def first_ambiguous_merge(lefts: Sequence[int], rights: Sequence[int]) -> int | None:
    """The first merge whose token a rank engine could spell from another pair, or None.

    Args:
        lefts: Rank of the left part of every token; entries below 256 (bytes) are not read.
        rights: Rank of the right part, likewise. Token r is made by merge r - 256.

    Returns:
        The rank of the offending token, or None when both engines agree on every text. Conditions
        1 and 2 of this module are the caller's to ensure.
    """
    ranks = range(NUM_BYTES, len(lefts))
    made_by = {(lefts[rank], rights[rank]): rank for rank in ranks}
    for rank in ranks:
        # Walk back in time from the moment before the merge: x and y are the tokens on the two
        # sides of the border, and each lived until the merge that swallowed it.
        x, y = lefts[rank], rights[rank]
        x_end = y_end = rank
        while x >= NUM_BYTES or y >= NUM_BYTES:
            if x > y:
                x_end, x = x, rights[x]
            else:
                y_end, y = y, lefts[y]
            crossing = made_by.get((x, y))
            # A run of three equal tokens is joined from the left, hence < on the left only.
            if crossing is not None and crossing < x_end and crossing <= y_end:
                return rank
    return None

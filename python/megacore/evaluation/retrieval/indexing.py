"""Making the vectors of all evidence, batch by batch; a restart goes on where the last run was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megacore.evaluation.retrieval.evidence import Evidence
from megacore.evaluation.retrieval.loading import Encoders
from megacore.evaluation.retrieval.store import EmbeddingStore, PieceFolder


def build_index(
    encoders: Encoders,
    evidence: Sequence[Evidence],
    path: Path,
    *,
    batch_size: int,
    batches_per_piece: int,
    say: Callable[[str], None],
) -> EmbeddingStore:
    """Vectors of all evidence, written to `path`.

    Args:
        encoders: Make the vectors.
        evidence: What is searched later.
        path: The file; finished pieces stand in `PATH_tmp` until it is complete.
        batch_size: Passages in one pass.
        batches_per_piece: Batches whose vectors are written together, with a line of progress.
        say: Told about progress.

    Raises:
        DataError: A piece of an earlier run is damaged.
    """
    told = f"{encoders.identity} {len(evidence)} {evidence[0]} {evidence[-1]}"
    pieces = PieceFolder(path, hashlib.sha256(told.encode()).hexdigest()[:16])
    rows = batch_size * batches_per_piece
    done = []
    for first in range(0, len(evidence), rows):
        part = evidence[first : first + rows]
        piece = pieces.get(first)
        if piece is None:
            piece = _piece(encoders, part, batch_size)
            pieces.put(first, piece)
            say(f"  {first + len(part)} of {len(evidence)} passages")
        else:
            say(f"  {first + len(part)} of {len(evidence)} passages (done before)")
        done.append(piece)
    store = EmbeddingStore(
        np.concatenate([piece.ids for piece in done]),
        np.concatenate([piece.vectors for piece in done]),
    )
    store.save(path)
    pieces.remove()
    return store


def _piece(encoders: Encoders, evidence: Sequence[Evidence], batch_size: int) -> EmbeddingStore:
    vectors = [
        encoders.passages(list(evidence[first : first + batch_size])).astype(np.float16)
        for first in range(0, len(evidence), batch_size)
    ]
    ids = np.array([passage.number for passage in evidence], dtype=np.int64)
    return EmbeddingStore(ids, np.concatenate(vectors))

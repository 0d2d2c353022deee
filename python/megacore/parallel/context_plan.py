"""How context parallelism cuts a sequence, and which parts attend to which.

A sequence of S tokens is cut into 2 * cp chunks; rank r has chunks r and 2 * cp - 1 - r, one after
the other. With a causal mask the work of every rank is the same at every step of the ring: at home
the local tokens are causal among themselves; keys of an earlier rank matter to all local queries
with their first half only; keys of a later rank matter as a whole, to the second half of the local
queries only. Nothing of the rest is computed, and no mask is needed but the one at home.

A document, too, takes a contiguous piece of the local tokens: when it reaches both chunks of a
rank, it covers the end of the first and the start of the second. So the same three cases, cut to
the pieces, hold for each document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from megacore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """One block of attention at one step of the ring.

    Attributes:
        rows: Sequences of the batch.
        queries: Local tokens that attend.
        keys: Local tokens, of the rank that the keys come from, that they attend to.
        causal: Query i sees keys 0 to i; otherwise every query sees every key.
    """

    rows: slice
    queries: slice
    keys: slice
    causal: bool


def local_part(x: Tensor, *, rank: int, size: int, dim: int = 1) -> Tensor:
    """The two chunks of a rank.

    Args:
        x: Whole sequences along `dim`, whose size is a multiple of 2 * size.
        rank: Index of the rank.
        size: Number of ranks cp.
        dim: Dimension of the sequence.

    Returns:
        A copy, 1 / size as long.

    Raises:
        UsageError: The sequence cannot be cut into 2 * size equal chunks.
    """
    length = x.shape[dim]
    if length % (2 * size):
        raise UsageError(
            f"a sequence of {length} tokens cannot be cut into the {2 * size} chunks of context "
            f"parallelism: --seq-length must be a multiple of 2 * --context-parallel-size"
        )
    chunk = length // (2 * size)
    chunks = (rank, 2 * size - 1 - rank)
    return torch.cat([x.narrow(dim, index * chunk, chunk) for index in chunks], dim)


def whole_sequence(parts: Tensor) -> Tensor:
    """The whole sequences of the parts of all ranks.

    Args:
        parts: [cp, B, S / cp, ...], the local tokens of each rank.

    Returns:
        [B, S, ...] in the order of the sequence.
    """
    chunks = parts.unflatten(2, (2, -1))
    first, second = chunks[:, :, 0], chunks[:, :, 1].flip(0)
    return torch.cat([first, second]).transpose(0, 1).flatten(1, 2)


def parts_of_all(x: Tensor, size: int) -> Tensor:
    """The inverse of `whole_sequence`: x [B, S, ...] as [cp, B, S / cp, ...]."""
    chunks = x.unflatten(1, (2 * size, -1)).transpose(0, 1)
    return torch.cat([chunks[:size], chunks[size:].flip(0)], dim=2)


@lru_cache(maxsize=16)
def ring_plan(
    *,
    batch_size: int,
    length: int,
    rank: int,
    size: int,
    document_lengths: tuple[int, ...] | None = None,
) -> tuple[tuple[BlockTask, ...], ...]:
    """The blocks of every step of the ring; at step t the keys are those of rank r - t.

    Step 0 covers every query and every key exactly once.

    Args:
        batch_size: Sequences B.
        length: Local tokens of each, S / cp.
        rank: Index of this rank.
        size: Number of ranks cp.
        document_lengths: Tokens of each document of the flattened B * S tokens of the whole batch,
            none reaching beyond its sequence; None when a sequence is one document.

    Raises:
        UsageError: The documents do not fit the batch.
    """
    documents = [(slice(0, batch_size), 0, length * size)]
    if document_lengths is not None:
        documents = list(_documents(document_lengths, batch_size, length * size))
    steps = []
    for step in range(size):
        source = (rank - step) % size
        tasks = []
        for rows, first, last in documents:
            here = _piece(first, last, rank, length, size)
            there = _piece(first, last, source, length, size)
            queries = slice(max(here.start, length // 2), here.stop) if source > rank else here
            keys = slice(there.start, min(there.stop, length // 2)) if source < rank else there
            if queries.start < queries.stop and keys.start < keys.stop:
                task = BlockTask(rows=rows, queries=queries, keys=keys, causal=step == 0)
                tasks.append(task)
        steps.append(tuple(tasks))
    return tuple(steps)


def _documents(
    lengths: tuple[int, ...], batch_size: int, sequence_length: int
) -> Iterator[tuple[slice, int, int]]:
    """Row, first and last token in it of each document that has tokens."""
    ends = list(itertools.accumulate(lengths, initial=0))
    if ends[-1] != batch_size * sequence_length:
        raise UsageError(
            f"cu_seqlens must run from 0 to the {batch_size * sequence_length} tokens of the batch "
            f"(of all context-parallel ranks), found an end of {ends[-1]}"
        )
    for start, end in itertools.pairwise(ends):
        row, first = divmod(start, sequence_length)
        if first + end - start > sequence_length:
            raise UsageError(
                f"a document of tokens {start} to {end} of the batch reaches beyond its sequence "
                f"of {sequence_length} tokens; with context parallelism it must not"
            )
        if end > start:
            yield slice(row, row + 1), first, first + end - start


def _piece(first: int, last: int, rank: int, length: int, size: int) -> slice:
    """Where tokens [first, last) of the sequence lie among the local ones of a rank."""
    chunk = length // 2
    pieces = []
    for local, index in ((0, rank), (chunk, 2 * size - 1 - rank)):
        start, stop = max(first, index * chunk), min(last, (index + 1) * chunk)
        if start < stop:
            offset = local - index * chunk
            pieces.append((start + offset, stop + offset))
    return slice(pieces[0][0], pieces[-1][1]) if pieces else slice(0, 0)

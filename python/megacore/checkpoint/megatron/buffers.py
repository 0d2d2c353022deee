"""Where parameters lie in the flat buffers of Megatron-Core's distributed optimizer.

A buffer holds the parameters of one stage and dtype in the reverse order of the model. Each begins
at a multiple of 64 elements; buckets end at a multiple that all shards can divide. What is stored
are the buckets one after the other, each without the padding behind its last parameter. A word
embedding that two stages share has a bucket of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128
_LEAST_BUCKET = 40_000_000
_BUCKET_PER_REPLICA = 1_000_000
# Steps of a search, per parameter. It goes back only behind parameters that are all zero.
_TRIES = 16


def default_bucket_size(replicas: int) -> int:
    """Elements of a bucket when gradients are reduced while backward runs."""
    return max(_LEAST_BUCKET, _BUCKET_PER_REPLICA * replicas)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def stored_offsets(
    numels: Sequence[int],
    alone: Sequence[bool],
    *,
    shards: int,
    bucket_size: int | None = None,
) -> tuple[list[int], int]:
    """Where parameters begin in what is stored of a buffer.

    Args:
        numels: Elements of each parameter, in the order of the buffer.
        alone: Which of them have a bucket of their own.
        shards: Processes that share the optimizer.
        bucket_size: A bucket with this many elements ends; None: there is no limit.

    Returns:
        First element of each parameter, and the number of elements of all.
    """
    unit = math.lcm(shards, _BUCKET_ALIGNMENT)
    offsets: list[int] = []
    # Positions in the buffer; `stored` is what the buckets before the current one store.
    position = begin = stored = 0
    is_open = False
    for numel, own_bucket in zip(numels, alone, strict=True):
        position = _up(position, ALIGNMENT)
        if own_bucket and is_open:
            stored += position - begin
            position = begin = _up(position, unit)
        offsets.append(stored + position - begin)
        position += numel
        is_open = True
        if own_bucket or (bucket_size is not None and position - begin >= bucket_size):
            stored += position - begin
            position = begin = _up(position, unit)
            is_open = False
    return offsets, stored + (position - begin if is_open else 0)


def find_offsets(
    numels: Sequence[int],
    total: int,
    is_here: Callable[[int, int], bool],
    *,
    shards: int,
) -> list[int] | None:
    """Where parameters begin in what is stored of a buffer, found by looking.

    Where buckets end depends on settings of the run that are not all stored, so each parameter is
    looked for at the few places where it can be.

    Args:
        numels: Elements of each parameter, in the order of the buffer.
        total: Elements that are stored.
        is_here: Whether parameter i can begin at an element.
        shards: Processes that shared the optimizer.

    Returns:
        First element of each; None when there is no way to place all of them.
    """
    unit = math.lcm(shards, _BUCKET_ALIGNMENT)
    offsets: list[int] = []
    # Of each parameter that is placed, and of the next one: places that were not tried yet.
    choices = [iter(_places(0, 0, unit))]
    for _ in range(_TRIES * len(numels) + _TRIES):
        index = len(offsets)
        if index == len(numels) and offsets[-1] + numels[-1] == total:
            return offsets
        fits = (
            (offset, begin)
            for offset, begin in choices[-1]
            if offset + numels[index] <= total and is_here(index, offset)
        )
        found = next(fits, None)
        if found is None:
            choices.pop()
            if not offsets:
                return None
            offsets.pop()
            continue
        offset, begin = found
        offsets.append(offset)
        after = _places(offset + numels[index], begin, unit) if index + 1 < len(numels) else []
        choices.append(iter(after))
    return None


def _places(end: int, begin: int, unit: int) -> list[tuple[int, int]]:
    """Where the next parameter can begin, and where its bucket does then."""
    aligned = begin + _up(end - begin, ALIGNMENT)
    padded = begin + _up(end - begin, unit)
    places = {aligned: begin, end: end, padded: padded}
    return list(places.items())

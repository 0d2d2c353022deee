"""Slow transcriptions of the index algorithms, written to be read; numpy is the only help."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class ReferenceIndices:
    num_epochs: int
    separate: bool
    samples_before_final: int
    document_index: np.ndarray
    sample_index: np.ndarray
    shuffle_index: np.ndarray


def count_epochs(tokens: int, length: int, num_samples: int | None, extra: int) -> int:
    epochs = 1
    while num_samples is not None and epochs * tokens < num_samples * length + extra:
        epochs += 1
    return epochs


def build_indices(
    lengths: np.ndarray,
    first: int,
    last: int,
    *,
    sequence_length: int,
    num_samples: int | None,
    seed: int,
    extra: int = 1,
    drop_last: bool = True,
) -> ReferenceIndices:
    documents = np.arange(first, last, dtype=np.int32)
    tokens = int(sum(int(lengths[d]) for d in documents))
    epochs = count_epochs(tokens, sequence_length, num_samples, extra)
    separate, before = False, 0
    if epochs > 1:
        before = ((epochs - 1) * tokens - extra) // sequence_length
        in_last = num_samples - before
        per_epoch = (tokens - extra) // sequence_length
        assert 0 <= in_last <= per_epoch + 1
        separate = in_last < int(0.80 * per_epoch)

    random = np.random.RandomState(seed)
    if separate:
        body = np.concatenate([documents] * (epochs - 1))
        final = documents.copy()
        random.shuffle(body)
        random.shuffle(final)
        document_index = np.concatenate([body, final])
    else:
        document_index = np.concatenate([documents] * epochs)
        random.shuffle(document_index)

    usable = epochs * tokens - extra
    if drop_last:
        count = usable // sequence_length
    else:
        count = math.ceil(np.float32(usable) / np.float32(sequence_length))
    sample_index = walk(lengths, document_index, sequence_length, count, extra)

    if separate:
        head = np.arange(0, before, dtype=np.uint32)
        tail = np.arange(before, count, dtype=np.uint32)
        random.shuffle(head)
        random.shuffle(tail)
        shuffle_index = np.concatenate([head, tail])
    else:
        shuffle_index = np.arange(count, dtype=np.uint32)
        random.shuffle(shuffle_index)
    return ReferenceIndices(
        epochs, separate, before if separate else 0, document_index, sample_index, shuffle_index
    )


def walk(
    lengths: np.ndarray, document_index: np.ndarray, length: int, count: int, extra: int
) -> np.ndarray:
    rows = [(0, 0)]
    position, offset = 0, 0
    for _ in range(count):
        need = length + extra
        while need != 0:
            available = int(lengths[document_index[position]]) - offset
            need -= available
            if need <= 0:
                offset += need + available - extra
                need = 0
            elif position == len(document_index) - 1:
                offset = int(lengths[document_index[position]]) - extra
                break
            else:
                position += 1
                offset = 0
        rows.append((position, offset))
    return np.array(rows, dtype=np.int64)


def sample_text(
    sequences: list[np.ndarray], indices: ReferenceIndices, index: int, extra: int = 1
) -> np.ndarray:
    row = int(indices.shuffle_index[index])
    (first, begin), (last, end) = indices.sample_index[row : row + 2].tolist()
    documents = indices.document_index
    if first == last:
        return sequences[documents[first]][begin : end + extra]
    middle = [sequences[documents[p]] for p in range(first + 1, last)]
    return np.concatenate(
        [sequences[documents[first]][begin:], *middle, sequences[documents[last]][: end + extra]]
    )


def blend(weights: list[float], size: int) -> tuple[list[int], list[int]]:
    counts = [0] * len(weights)
    datasets, samples = [], []
    for i in range(size):
        place = max(float(i), 1.0)
        chosen, largest = 0, weights[0] * place - counts[0]
        for d in range(1, len(weights)):
            error = weights[d] * place - counts[d]
            if error > largest:
                chosen, largest = d, error
        datasets.append(chosen)
        samples.append(counts[chosen])
        counts[chosen] += 1
    return datasets, samples


def exhaustive_blend(sizes: list[int]) -> tuple[list[int], list[int]]:
    total = sum(sizes)
    weights = [size / total for size in sizes]
    counts = [0] * len(sizes)
    left = {d for d, size in enumerate(sizes) if size > 0}
    datasets, samples = [], []
    for i in range(total):
        place = max(float(i), 1.0)
        chosen = max(sorted(left), key=lambda d: weights[d] * place - counts[d])
        datasets.append(chosen)
        samples.append(counts[chosen])
        counts[chosen] += 1
        if counts[chosen] == sizes[chosen]:
            left.remove(chosen)
    return datasets, samples

"""Slow transcriptions of sample maps over sentences, written to be read.

The Mersenne Twisters are plain ones, made from their published recurrences.
"""

from __future__ import annotations

import itertools

LONGEST_SENTENCE = 512


class Twister:
    """The Mersenne Twister of 32 or 64 bits."""

    def __init__(self, seed: int, *, bits: int) -> None:
        self.bits = bits
        if bits == 32:
            self.size, self.shift, factor = 624, 397, 1812433253
            self.matrix, self.low_bits = 0x9908B0DF, 31
        else:
            self.size, self.shift, factor = 312, 156, 6364136223846793005
            self.matrix, self.low_bits = 0xB5026F5AA96619E9, 31
        self.limit = (1 << bits) - 1
        self.words = [seed & self.limit]
        for i in range(1, self.size):
            last = self.words[-1]
            self.words.append((factor * (last ^ (last >> (bits - 2))) + i) & self.limit)
        self.position = self.size

    def draw(self) -> int:
        if self.position == self.size:
            low = (1 << self.low_bits) - 1
            for i in range(self.size):
                nearby = self.words[(i + 1) % self.size]
                word = (self.words[i] & (self.limit ^ low)) | (nearby & low)
                shifted = self.words[(i + self.shift) % self.size]
                self.words[i] = shifted ^ (word >> 1) ^ (self.matrix if word & 1 else 0)
            self.position = 0
        word = self.words[self.position]
        self.position += 1
        if self.bits == 32:
            word ^= word >> 11
            word ^= (word << 7) & 0x9D2C5680
            word ^= (word << 15) & 0xEFC60000
            return word ^ (word >> 18)
        word ^= (word >> 29) & 0x5555555555555555
        word ^= (word << 17) & 0x71D67FFFEDA60000
        word ^= (word << 37) & 0xFFF7EEE000000000
        return word ^ (word >> 43)


def shuffled(rows: list[tuple[int, ...]], seed: int) -> list[list[int]]:
    random = Twister(seed + 1, bits=64)
    out = [list(row) for row in rows]
    for i in range(len(out) - 1, 0, -1):
        j = random.draw() % (i + 1)
        out[i], out[j] = out[j], out[i]
    return out


def map_spans(
    boundaries, sizes, *, max_length, short_probability, seed, num_samples, min_sentences
) -> list[list[int]]:
    random = Twister(seed, bits=32)
    # Halves are rounded away from zero here, unlike in Python.
    ratio = int(1.0 / short_probability + 0.5) if short_probability else 0

    def target_length() -> int:
        if ratio == 0:
            return max_length
        value = random.draw()
        return 2 + value % (max_length - 1) if value % ratio == 0 else max_length

    rows: list[tuple[int, ...]] = []
    epoch = 0
    while epoch == 0 if num_samples is None else len(rows) < num_samples:
        epoch += 1
        for first, last in itertools.pairwise(boundaries):
            remaining = last - first
            if remaining > 1 and max(sizes[first:last]) > LONGEST_SENTENCE:
                continue
            if remaining < min_sentences:
                continue
            start, length, count, target = first, 0, 0, target_length()
            for sentence in range(first, last):
                length += sizes[sentence]
                count += 1
                remaining -= 1
                full = length >= target and remaining > 1 and count >= min_sentences
                if full or remaining == 0:
                    rows.append((start, sentence + 1, target))
                    start, length, count, target = sentence + 1, 0, 0, target_length()
    return shuffled(rows, seed)


def map_blocks(
    boundaries, sizes, titles, *, max_length, seed, num_samples, min_sentences
) -> list[list[int]]:
    rows: list[tuple[int, ...]] = []
    epoch = 0
    while epoch == 0 if num_samples is None else len(rows) < num_samples:
        epoch += 1
        block = 0
        for document, (first, last) in enumerate(itertools.pairwise(boundaries)):
            remaining = last - first
            if remaining < min_sentences or max(sizes[first:last]) > LONGEST_SENTENCE:
                continue
            target = max_length - titles[document]
            start, length, count = first, 0, 0
            for sentence in range(first, last):
                length += sizes[sentence]
                count += 1
                remaining -= 1
                full = length >= target and remaining >= min_sentences and count >= min_sentences
                if full or remaining == 0:
                    rows.append((start, sentence + 1, document, block))
                    block += 1
                    start, length, count = sentence + 1, 0, 0
    return shuffled(rows, seed)

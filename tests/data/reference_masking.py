"""Slow transcriptions of masked samples, with numpy's own random numbers and Python's lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Vocabulary:
    """Token texts by id, and the special ids."""

    texts: list[str]
    cls: int
    sep: int
    mask: int
    pad: int
    bos: int
    eos: int
    extra_ids: list[int]


def mask(
    tokens: list[int],
    target: int,
    rng: np.random.RandomState,
    vocabulary: Vocabulary,
    *,
    probability: float,
    longest: int,
    geometric: bool,
    keep_some: bool,
    may_add=lambda masked, spans: True,
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Masked tokens, and (positions, original ids) of every span."""
    tokens = list(tokens)
    words: list[list[int]] = []
    for i, token in enumerate(tokens):
        if token in (vocabulary.cls, vocabulary.sep):
            continue
        if words and vocabulary.texts[token].startswith("##"):
            words[-1].append(i)
        else:
            words.append([i])
    budget = min(probability * target, max(1, round(len(tokens) * probability)))
    candidates = [[words[i : i + n] for n in range(1, longest + 1)] for i in range(len(words))]
    shares = 1.0 / np.arange(1, longest + 1)
    shares = shares / shares.sum()
    rng.shuffle(candidates)
    taken: set[int] = set()
    spans: list[tuple[list[int], list[int]]] = []
    for ngrams in candidates:
        if len(taken) >= budget:
            break
        if geometric:
            n = min(int(rng.geometric(0.2)), longest)
        else:
            n = int(rng.choice(np.arange(1, longest + 1), p=shares))
        while True:
            positions = [i for word in ngrams[n - 1] for i in word]
            if len(taken) + len(positions) <= budget or n == 1:
                break
            n -= 1
        if len(taken) + len(positions) > budget or taken & set(positions):
            continue
        if not may_add(len(taken) + len(positions), len(spans) + 1):
            break
        originals = [tokens[i] for i in positions]
        for i in positions:
            taken.add(i)
            if not keep_some or rng.random_sample() < 0.8:
                tokens[i] = vocabulary.mask
            elif rng.random_sample() >= 0.5:
                tokens[i] = int(rng.randint(0, len(vocabulary.texts)))
        spans.append((positions, originals))
    return tokens, sorted(spans)


def padded(values: list[int], length: int, rest: int) -> list[int]:
    assert len(values) <= length
    return values + [rest] * (length - len(values))


def bert_sample(
    sentences: list[list[int]],
    target: int,
    index: int,
    vocabulary: Vocabulary,
    *,
    seed: int,
    length: int,
    probability: float,
    two_parts: bool,
) -> dict[str, object]:
    rng = np.random.RandomState((seed + index) % 2**32)
    if two_parts:
        pivot = int(rng.randint(1, len(sentences))) if len(sentences) >= 3 else 1
        a = [t for s in sentences[:pivot] for t in s]
        b = [t for s in sentences[pivot:] for t in s]
        swapped = bool(rng.random_sample() < 0.5)
        if swapped:
            a, b = b, a
    else:
        a, b, swapped = [t for s in sentences for t in s], [], False
    while len(a) + len(b) > target:
        longer = a if len(a) > len(b) else b
        if rng.random_sample() < 0.5:
            del longer[0]
        else:
            longer.pop()
    tokens = [vocabulary.cls, *a, vocabulary.sep]
    types = [0] * len(tokens)
    if b:
        tokens += [*b, vocabulary.sep]
        types += [1] * (len(b) + 1)
    masked, spans = mask(
        tokens, target, rng, vocabulary,
        probability=probability, longest=3, geometric=False, keep_some=True,
    )  # fmt: skip
    labels, loss_mask = [-1] * length, [0.0] * length
    for positions, originals in spans:
        for i, token in zip(positions, originals, strict=True):
            labels[i], loss_mask[i] = token, 1.0
    return {
        "text": padded(masked, length, vocabulary.pad),
        "types": padded(types, length, 0),
        "labels": labels,
        "loss_mask": loss_mask,
        "is_random": int(swapped),
        "lengths": len(tokens),
    }


def t5_sample(
    sentences: list[list[int]],
    target: int,
    index: int,
    vocabulary: Vocabulary,
    *,
    seed: int,
    length: int,
    decoder_length: int,
    probability: float,
) -> dict[str, object]:
    rng = np.random.RandomState((seed + index) % 2**32)
    tokens = [t for s in sentences for t in s][:target]
    sentinels = list(vocabulary.extra_ids)
    _, spans = mask(
        tokens, target, rng, vocabulary,
        probability=probability, longest=10, geometric=True, keep_some=False,
        may_add=lambda masked, spans: spans <= len(sentinels)
        and 1 + masked + spans <= decoder_length,
    )  # fmt: skip
    encoder: list[int] = []
    decoder, labels = [vocabulary.bos], []
    rest = 0
    for (positions, originals), sentinel in zip(spans, sentinels, strict=False):
        encoder += [*tokens[rest : positions[0]], sentinel]
        rest = positions[-1] + 1
        decoder += [sentinel, *originals]
        labels += [sentinel, *originals]
    encoder += tokens[rest:]
    labels.append(vocabulary.eos)
    return {
        "text_enc": padded(encoder, length, vocabulary.pad),
        "text_dec": padded(decoder, decoder_length, vocabulary.pad),
        "labels": padded(labels, decoder_length, -1),
        "loss_mask": padded([1.0] * len(labels), decoder_length, 0.0),
        "enc_lengths": len(encoder),
        "dec_lengths": len(decoder),
    }


def ict_sample(
    sentences: list[list[int]],
    title: list[int],
    index: int,
    vocabulary: Vocabulary,
    *,
    seed: int,
    length: int,
    query_in_block: float,
) -> dict[str, object]:
    rng = np.random.RandomState((seed + index) % 2**32)
    chosen = int(rng.randint(0, len(sentences)))
    stays = rng.random_sample() < query_in_block
    query = sentences[chosen][: length - 2]
    kept = [s for i, s in enumerate(sentences) if stays or i != chosen]
    block = [t for s in kept for t in s][: length - 3 - len(title)]
    words = [vocabulary.cls, *query, vocabulary.sep]
    context = [vocabulary.cls, *title, vocabulary.sep, *block, vocabulary.sep]
    return {
        "query_tokens": padded(words, length, vocabulary.pad),
        "query_lengths": len(words),
        "context_tokens": padded(context, length, vocabulary.pad),
        "context_lengths": len(context),
    }

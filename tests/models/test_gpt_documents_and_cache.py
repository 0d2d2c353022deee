"""Packed documents, positions and the key/value cache, against separate full passes."""

import itertools

import pytest
import torch
from small_gpt import BATCH, LENGTH, ROTARY, VOCAB, batch, build, gradients

from megacore.errors import UsageError
from megacore.layers.kv_cache import KVCache
from megacore.testing.tolerance import expect_close

# Rows of 17 tokens; documents end inside rows and at their ends, one has a single token.
BOUNDS = [0, 4, 17, 18, 34, 40, 45, 51]
# float64 on both sides: the sums differ in order only.
ROUNDING = 1e-11

MODELS = {
    "learned": {},
    "rotary": ROTARY,
    "multi-query": {
        "group_query_attention": True,
        "num_query_groups": 1,
        "position_embedding_type": "rope",
    },
    "scaled": {"apply_query_key_layer_scaling": True, "position_embedding_type": "none"},
}


def _reset_positions():
    pieces = [torch.arange(e - s) for s, e in itertools.pairwise(BOUNDS)]
    return torch.cat(pieces).view(BATCH, LENGTH)


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_separate_documents(name):
    tokens, labels = batch()
    packed = build(**MODELS[name])
    losses = packed(
        tokens,
        _reset_positions(),
        labels=labels,
        cu_seqlens=torch.tensor(BOUNDS, dtype=torch.int32),
    )
    losses.sum().backward()

    separate = build(**MODELS[name])
    flat_tokens, flat_labels = tokens.flatten(), labels.flatten()
    for start, end in itertools.pairwise(BOUNDS):
        part = slice(start, end)
        loss = separate(flat_tokens[None, part], labels=flat_labels[None, part])
        loss.sum().backward()
        expect_close(losses.flatten()[part], loss[0], bound=ROUNDING, name=f"document {start}")
    reference = gradients(separate)
    for key, grad in gradients(packed).items():
        expect_close(grad, reference[key], bound=ROUNDING * 100, name=key)


def test_rotary_is_relative():
    """Without resets a document's rotary positions are shifted, which changes nothing."""
    tokens, _ = batch()
    model = build(**ROTARY)
    bounds = torch.tensor([0, 17, 34, 51], dtype=torch.int32)
    shifted = torch.arange(LENGTH)[None] + torch.tensor([[0], [5], [1000]])
    expect_close(
        model(tokens, shifted, cu_seqlens=bounds), model(tokens), bound=1e-9, name="logits"
    )


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ([0, 50], "from 0 to the 51"),
        ([1, 51], "from 0"),
        ([0], "from 0"),
        ([0, 30, 20, 51], "not decrease"),
    ],
)
def test_bad_document_bounds(bounds, text):
    with pytest.raises(UsageError, match=text):
        build()(batch()[0], cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", [[17], [1] * 17, [5, 1, 1, 3, 7]])
def test_cache_equals_full_pass(name, chunks):
    tokens, _ = batch()
    model = build(**MODELS[name]).eval()
    full = model(tokens)
    cache = KVCache(model.spec, batch_size=BATCH, capacity=LENGTH, dtype=torch.float64)
    start = 0
    for count in chunks:
        part = model(tokens[:, start : start + count], cache=cache)
        cache.advance([count] * BATCH)
        expect_close(part, full[:, start : start + count], bound=ROUNDING, name=f"from {start}")
        start += count


@pytest.mark.parametrize("name", MODELS)
def test_ragged_cache_equals_rows_alone(name):
    tokens, _ = batch()
    lengths = [9, 2, 5]
    model = build(**MODELS[name]).eval()
    cache = KVCache(model.spec, batch_size=BATCH, capacity=LENGTH, dtype=torch.float64)
    last = torch.tensor(lengths) - 1
    # What lies right of a short prompt is arbitrary.
    first = model.last_logits(tokens[:, :9], last, cache=cache)
    cache.advance(lengths)
    rows = torch.arange(BATCH)
    steps = [first]
    for step in range(6):
        columns = torch.tensor(lengths) + step
        steps.append(model(tokens[rows, columns][:, None], cache=cache)[:, 0])
        cache.advance([1] * BATCH)
    for row in range(BATCH):
        alone = model(tokens[row : row + 1, : lengths[row] + 6])[0, lengths[row] - 1 :]
        found = torch.stack([step[row] for step in steps])
        expect_close(found, alone, bound=ROUNDING, name=f"row {row}")


def test_dropping_rows_keeps_the_others():
    tokens, _ = batch()
    model = build().eval()
    cache = KVCache(model.spec, batch_size=BATCH, capacity=LENGTH, dtype=torch.float64)
    model(tokens[:, :6], cache=cache)
    cache.advance([6, 4, 5])
    cache.keep_rows([2, 0])
    assert cache.lengths.tolist() == [5, 6]
    step = model(torch.stack([tokens[2, 5:6], tokens[0, 6:7]]), cache=cache)
    expect_close(step[0, 0], model(tokens[2:3, :6])[0, 5], bound=ROUNDING)
    expect_close(step[1, 0], model(tokens[0:1, :7])[0, 6], bound=ROUNDING)


def test_limits_are_reported():
    model = build().eval()
    with pytest.raises(UsageError, match="24 tokens is longer than the 23 learned positions"):
        model(torch.zeros(1, 24, dtype=torch.int64))
    cache = KVCache(model.spec, batch_size=1, capacity=4, dtype=torch.float64)
    with pytest.raises(UsageError, match="holds 4 tokens, 5 are needed"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
    with pytest.raises(UsageError, match="cannot be used with a cache"):
        model(torch.zeros(1, 2, dtype=torch.int64), cu_seqlens=torch.tensor([0, 2]), cache=cache)


def test_rotary_has_no_length_limit():
    model = build(**ROTARY).eval()
    assert model(torch.randint(0, VOCAB, (1, 40))).shape == (1, 40, 128)

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from dataset_fixtures import FakeTokenizer, config, write_documents
from reference_indices import blend

from megacore.data.blended_dataset import BlendedDataset
from megacore.data.datasets import build_datasets
from megacore.data.gpt_dataset import GPTDataset
from megacore.errors import DataError


@pytest.fixture
def prefixes(tmp_path):
    paths = []
    for number, count in enumerate((30, 60, 20)):
        path = tmp_path / f"d{number}"
        write_documents(path, [11 + number] * count, seed=number)
        paths.append(str(path))
    return paths


def build(samples, **data):
    data = config(**{"split": "1" if "data_path" in data else None, **data})
    return build_datasets(data, FakeTokenizer(), seed=7, num_samples=samples)


def weighted(prefixes, weights=(0.5, 0.2, 0.3)):
    return tuple(word for pair in zip(map(str, weights), prefixes, strict=True) for word in pair)


def test_weighted_blend(prefixes):
    train = build((100, None, None), data_path=weighted(prefixes)).train
    assert isinstance(train, BlendedDataset)
    asked = [math.ceil(100 * w * 1.005) for w in (0.5, 0.2, 0.3)]
    assert [m.identity["num_samples"] for m in train.members] == asked
    assert len(train) == sum(asked) == 103
    datasets, samples = blend(train.identity["weights"], len(train))
    assert train.dataset_index.tolist() == datasets
    assert train.dataset_sample_index.tolist() == samples
    for i in range(len(train)):
        sample, member = train[i], train.members[datasets[i]][samples[i]]
        np.testing.assert_array_equal(sample.tokens, member.tokens)
        np.testing.assert_array_equal(sample.labels, member.labels)
        assert (sample.dataset_id, member.dataset_id) == (datasets[i], None)


def test_batches_put_members_into_their_rows(prefixes):
    train = build((100, None, None), data_path=weighted(prefixes)).train
    chosen = np.random.default_rng(1).permutation(len(train))[:40]
    rows = np.random.default_rng(2).permutation(40)
    tokens, labels = np.empty((40, 8), np.int64), np.empty((40, 8), np.int64)
    train.gather(chosen, rows, vocab_size=100, tokens=tokens, labels=labels)
    for sample, row in zip(chosen, rows, strict=True):
        np.testing.assert_array_equal(tokens[row], train[sample].tokens)
        np.testing.assert_array_equal(labels[row], train[sample].labels)


def test_renormalized_weights(prefixes):
    data = {"data_path": weighted(prefixes), "renormalize_blend_weights": True}
    train = build((100, None, None), **data).train
    counts = np.bincount(train.dataset_index)
    assert counts.tolist() == [51, 21, 31]
    assert train.identity["renormalize_blend_weights"] is True
    assert train.identity["weights"] == pytest.approx([51 / 103, 21 / 103, 31 / 103])


def test_prefixes_without_weights_are_used_up(prefixes):
    train = build((10_000, None, None), data_path=tuple(prefixes)).train
    lengths = [len(member) for member in train.members]
    assert lengths == [(30 * 11 - 1) // 8, (60 * 12 - 1) // 8, (20 * 13 - 1) // 8]
    assert len(train) == sum(lengths)
    assert np.bincount(train.dataset_index).tolist() == lengths
    assert all(m.identity["num_samples"] is None for m in train.members)
    assert len(build((50, None, None), data_path=tuple(prefixes)).train) == 50


def test_one_prefix_with_a_weight(prefixes):
    shared = build((20, None, None), data_path=("1.0", prefixes[0])).train
    assert isinstance(shared, BlendedDataset)
    assert len(shared) == 21
    own = build((20, None, None), train_data_path=("1.0", prefixes[0])).train
    assert isinstance(own, GPTDataset)
    assert isinstance(build((20, None, None), data_path=(prefixes[0],)).train, GPTDataset)


def test_paths_per_split(prefixes):
    built = build(
        (30, 20, 10), train_data_path=weighted(prefixes[:2], (1, 3)), valid_data_path=(prefixes[2],)
    )
    assert isinstance(built.train, BlendedDataset)
    assert isinstance(built.valid, GPTDataset)
    assert built.test is None
    identity = built.valid.identity
    assert (identity["split"], identity["split_matrix"]) == (None, None)
    assert '"split_matrix": null' in json.dumps(identity, indent=4)
    assert len(built.valid) == (20 * 13 - 1) // 8


def test_blends_are_cached_only_where_told(prefixes, tmp_path):
    build((30, None, None), data_path=weighted(prefixes))
    assert not list(tmp_path.rglob("*BlendedDataset*"))
    cache = tmp_path / "cache"
    data = {"data_path": weighted(prefixes), "data_cache_path": str(cache)}
    first = build((30, None, None), **data).train
    names = sorted(path.name[32:] for path in cache.glob("*BlendedDataset-train-*"))
    assert [name for name in names if not name.endswith(".lock")] == [
        "-BlendedDataset-train-dataset_index.npy",
        "-BlendedDataset-train-dataset_sample_index.npy",
        "-BlendedDataset-train-description.txt",
    ]
    (text,) = (path.read_text() for path in cache.glob("*BlendedDataset-train-description.txt"))
    assert list(json.loads(text)) == [
        "class", "datasets", "split", "weights", "size", "renormalize_blend_weights",
    ]  # fmt: skip
    again = build((30, None, None), **data).train
    assert isinstance(again.dataset_index, np.memmap)
    np.testing.assert_array_equal(first.dataset_index, again.dataset_index)


def test_threads_build_the_same(prefixes):
    one = build((100, None, None), data_path=weighted(prefixes)).train
    many = build(
        (100, None, None), data_path=weighted(prefixes), num_dataset_builder_threads=3
    ).train
    assert one.identity == many.identity
    np.testing.assert_array_equal(one.dataset_index, many.dataset_index)


def test_a_member_that_is_too_short(prefixes):
    members = build((1000, None, None), data_path=tuple(prefixes)).train.members
    with pytest.raises(DataError, match=r"train blend oversamples .*--renormalize-blend-weights"):
        BlendedDataset(
            members, weights=[0.1, 0.1, 0.8], size=200, split="train", renormalize=False, cache=None
        )


def test_a_member_without_documents_in_the_split_is_named(prefixes):
    with pytest.raises(DataError, match=r"d0 has 30 sequences, of which --split '99,1,0'"):
        build((10, 10, None), data_path=tuple(prefixes), split="99,1,0")

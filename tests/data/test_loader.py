from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from dataset_fixtures import EOD, FakeTokenizer, config, write_documents

from megacore.data import build_datasets, build_loader
from megacore.data.loader import make_batch
from megacore.errors import ConfigError, DataError


@pytest.fixture
def train(tmp_path):
    write_documents(tmp_path / "d", [13, 40, 0, 7] * 20)
    data = config(data_path=(str(tmp_path / "d"),), split="1")
    return build_datasets(data, FakeTokenizer(), seed=3, num_samples=(100, None, None)).train


def load(dataset, *, micro=4, consumed=0, vocab=100, rank=0, ranks=1, **data):
    return build_loader(
        dataset, make=partial(make_batch, vocab_size=vocab), data=config(mock_data=True, **data),
        micro_batch_size=micro, consumed_samples=consumed, data_parallel_rank=rank,
        data_parallel_size=ranks,
    )  # fmt: skip


def test_batches_hold_the_samples_in_order(train):
    batches = list(load(train))
    assert len(batches) == len(train) // 4
    for number, batch in enumerate(batches):
        assert (batch.tokens.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
        assert (batch.loss_mask.dtype, batch.position_ids.dtype) == (torch.float32, torch.int64)
        assert batch.cu_seqlens is None
        assert batch.max_seqlen is None
        for row in range(4):
            sample = train[4 * number + row]
            np.testing.assert_array_equal(batch.tokens[row].numpy(), sample.tokens)
            np.testing.assert_array_equal(batch.labels[row].numpy(), sample.labels)
            np.testing.assert_array_equal(batch.loss_mask[row].numpy(), sample.loss_mask)
            np.testing.assert_array_equal(batch.position_ids[row].numpy(), sample.position_ids)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("kind", ["single", "cyclic"])
def test_threads_change_nothing(train, workers, kind):
    plain = islice(load(train, dataloader_type=kind), 60)
    threaded = islice(load(train, dataloader_type=kind, num_workers=workers), 60)
    for expected, found in zip(plain, threaded, strict=True):
        assert torch.equal(expected.tokens, found.tokens)
        assert torch.equal(expected.labels, found.labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["single", "cyclic"])
def test_reading_leaves_the_global_random_states_alone(train, workers, kind):
    # A resumed run starts its threads at another iteration; a draw then would change dropout.
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    assert len(list(islice(load(train, dataloader_type=kind, num_workers=workers), 20))) == 20
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2:] == numpy_state[2:]


@pytest.mark.parametrize("kind", ["single", "cyclic"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_where_the_run_stood(train, kind, workers):
    straight = list(islice(load(train, dataloader_type=kind, num_workers=workers), 20))
    resumed = load(train, dataloader_type=kind, num_workers=workers, consumed=4 * 13)
    for expected, found in zip(straight[13:], resumed, strict=False):
        assert torch.equal(expected.tokens, found.tokens)


def test_ranks_share_the_samples(train):
    whole = list(load(train, micro=6))
    parts = [list(load(train, micro=3, rank=r, ranks=2)) for r in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.tokens, torch.cat([first.tokens, second.tokens]))


def test_segments_run_over_the_whole_batch(tmp_path):
    write_documents(tmp_path / "d", [13, 40, 0, 7] * 20)
    data = config(data_path=(str(tmp_path / "d"),), split="1", reset_attention_mask=True)
    train = build_datasets(data, FakeTokenizer(), seed=3, num_samples=(100, None, None)).train
    longest = 0
    for batch in load(train):
        flat = batch.tokens.flatten().tolist()
        starts = [i for i in range(32) if i % 8 == 0 or flat[i - 1] == EOD]
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.cu_seqlens.tolist() == [*starts, 32]
        assert batch.max_seqlen == max(np.diff([*starts, 32]))
        longest = max(longest, batch.max_seqlen)
    assert longest == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_beyond_the_vocabulary_stop_the_run(train, workers):
    with pytest.raises(
        DataError, match=r"sequence \d+, item \d+: expected a token id from 0 to 49"
    ):
        list(load(train, vocab=50, num_workers=workers))


def test_threads_end_with_the_iterator(train):
    loader = load(train, num_workers=3)
    next(loader)
    assert any(t.name.startswith("megacore-data") for t in threading.enumerate())
    loader.close()
    assert not any(t.name.startswith("megacore-data") for t in threading.enumerate())


def test_reading_leaves_the_random_state_alone(train):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for kind in ("single", "cyclic"):
        list(islice(load(train, dataloader_type=kind, num_workers=2), 30))
    assert torch.equal(torch.get_rng_state(), before)


def test_blends_load_like_other_datasets(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_documents(tmp_path / name, [30] * 40, seed=seed)
    words = ("0.3", str(tmp_path / "a"), "0.7", str(tmp_path / "b"))
    data = config(data_path=words, split="1")
    train = build_datasets(data, FakeTokenizer(), seed=3, num_samples=(60, None, None)).train
    for number, batch in enumerate(load(train, num_workers=2)):
        for row in range(4):
            sample = train[4 * number + row]
            np.testing.assert_array_equal(batch.tokens[row].numpy(), sample.tokens)


def test_batches_may_be_changed_by_their_user(train):
    first = next(load(train))
    first.loss_mask.zero_()
    first.tokens.zero_()
    second = next(load(train))
    assert second.loss_mask.min() == 1.0
    assert second.tokens.max() > 0


def test_an_external_loader_cannot_be_named_by_a_flag():
    with pytest.raises(ConfigError):
        replace(config(mock_data=True), dataloader_type="external").resolved()

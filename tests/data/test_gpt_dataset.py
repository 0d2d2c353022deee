from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from dataset_fixtures import EOD, FakeTokenizer, config, write_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_indices import build_indices, sample_text

from megacore import _C
from megacore.data.datasets import build_datasets
from megacore.data.gpt_dataset import GPTDataset, Rules, indexed_documents
from megacore.data.indexed_dataset import IndexedDataset
from megacore.errors import DataError

LENGTHS = [5, 0, 17, 3, 9, 2, 26, 4, 8, 1]


def build(tmp_path, samples=(40, None, None), tokenizer=None, **data):
    data = {"data_path": (str(tmp_path / "d"),), "split": "1", **data}
    return build_datasets(
        config(**data), tokenizer or FakeTokenizer(), seed=1234, num_samples=samples
    )


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_samples_equal_the_transcription(tmp_path, dtype, mmap):
    documents = write_documents(tmp_path / "d", LENGTHS, dtype=dtype)
    train = build(tmp_path, mmap_bin_files=mmap).train
    wanted = build_indices(
        np.array(LENGTHS), 0, len(LENGTHS), sequence_length=8, num_samples=40, seed=1234
    )
    assert len(train) == len(wanted.shuffle_index) >= 40
    for i in range(len(train)):
        sample, text = train[i], sample_text(documents, wanted, i)
        np.testing.assert_array_equal(sample.tokens, text[:-1])
        np.testing.assert_array_equal(sample.labels, text[1:])
        assert (sample.tokens.dtype, sample.labels.dtype) == (np.int64, np.int64)
        np.testing.assert_array_equal(sample.loss_mask, np.ones(8, np.float32))
        np.testing.assert_array_equal(sample.position_ids, np.arange(8))
        assert sample.cu_seqlens is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(lambda x: sum(x) > 1),
    length=st.integers(1, 20),
    samples=st.integers(1, 30),
    order=st.randoms(use_true_random=False),
)
def test_batches_equal_the_transcription(tmp_path_factory, lengths, length, samples, order):
    folder = tmp_path_factory.mktemp("g")
    documents = write_documents(folder / "d", lengths)
    train = build(folder, samples=(samples, None, None), seq_length=length).train
    wanted = build_indices(
        np.array(lengths), 0, len(lengths),
        sequence_length=length, num_samples=samples, seed=1234,
    )  # fmt: skip
    chosen = [order.randrange(len(train)) for _ in range(40)]
    rows = list(range(40))
    order.shuffle(rows)
    tokens, labels = np.full((40, length), -7), np.full((40, length), -7)
    train.gather(np.array(chosen), np.array(rows), vocab_size=100, tokens=tokens, labels=labels)
    for sample, row in zip(chosen, rows, strict=True):
        text = sample_text(documents, wanted, sample)
        np.testing.assert_array_equal(tokens[row], text[:-1])
        np.testing.assert_array_equal(labels[row], text[1:])


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_rules_at_the_end_of_documents(tmp_path, mask, positions, attention):
    write_documents(tmp_path / "d", LENGTHS)
    train = build(
        tmp_path,
        eod_mask_loss=mask,
        reset_position_ids=positions,
        reset_attention_mask=attention,
    ).train
    for i in range(len(train)):
        sample = train[i]
        expected_mask, expected_positions, starts, start = [], [], [0], 0
        for t, token in enumerate(sample.tokens.tolist()):
            expected_mask.append(0.0 if mask and token == EOD else 1.0)
            expected_positions.append(t - start if positions else t)
            if token == EOD:
                start = t + 1
                if t + 1 < 8:
                    starts.append(t + 1)
        assert sample.loss_mask.tolist() == expected_mask
        assert sample.position_ids.tolist() == expected_positions
        if attention:
            assert sample.cu_seqlens.tolist() == [*starts, 8]
            assert sample.cu_seqlens.dtype == np.int32
        else:
            assert sample.cu_seqlens is None


def test_padding_token_has_no_loss_and_becomes_id_0(tmp_path):
    documents = write_documents(tmp_path / "d", LENGTHS)
    pad = int(documents[2][4])
    train = build(tmp_path, tokenizer=FakeTokenizer(pad=pad)).train
    plain = build(tmp_path, data_cache_path=str(tmp_path / "other")).train
    seen = 0
    for i in range(len(train)):
        sample, raw = train[i], plain[i]
        np.testing.assert_array_equal(sample.tokens, np.where(raw.tokens == pad, 0, raw.tokens))
        np.testing.assert_array_equal(sample.labels, np.where(raw.labels == pad, 0, raw.labels))
        np.testing.assert_array_equal(sample.loss_mask, (raw.labels != pad).astype(np.float32))
        seen += int((raw.labels == pad).sum())
    assert seen > 0


@pytest.mark.parametrize("pad", [-1, 55])
def test_partial_last_sample_is_padded(tmp_path, pad):
    documents = write_documents(tmp_path / "d", [11, 5])
    dataset = IndexedDataset(str(tmp_path / "d"))
    source = indexed_documents(dataset)
    lengths = np.array([11, 5])
    plan = _C.data.plan_gpt_indices(
        "d", first_document=0, last_document=2, tokens_per_epoch=16, sequence_length=8,
        num_samples=None, drop_last=False,
    )  # fmt: skip
    arrays = _C.data.build_gpt_indices(plan, dataset.sequence_lengths, seed=1)
    wanted = build_indices(
        lengths, 0, 2, sequence_length=8, num_samples=None, seed=1, drop_last=False
    )
    gather = _C.data.GptGather(source.source, *arrays, sequence_length=8, pad_id=pad)
    assert gather.num_samples == 2
    partial = int(np.argmax(wanted.shuffle_index))
    text = sample_text(documents, wanted, partial)
    assert len(text) == 8
    tokens, labels = np.empty((1, 8), np.int64), np.empty((1, 8), np.int64)
    gather.gather([partial], [0], 100, tokens, labels)
    mask, positions = np.empty((1, 8), np.float32), np.empty((1, 8), np.int64)
    _C.data.finish_batch(
        tokens, labels, mask, positions, eod=EOD, pad=pad,
        mask_eod_loss=False, reset_position_ids=False, cut_at_eod=False,
    )  # fmt: skip
    np.testing.assert_array_equal(tokens[0], np.where(text == pad, 0, text))
    assert labels[0, -1] == 0
    assert mask[0, -1] == 0.0
    np.testing.assert_array_equal(labels[0, :-1], np.where(text[1:] == pad, 0, text[1:]))


def test_no_index_is_the_first_sample_without_loss(tmp_path):
    write_documents(tmp_path / "d", LENGTHS)
    train = build(tmp_path).train
    filler = train[None]
    np.testing.assert_array_equal(filler.tokens, train[0].tokens)
    assert filler.loss_mask.tolist() == [0.0] * 8
    assert train[0].loss_mask.tolist() == [1.0] * 8
    for index in (len(train), -1):
        with pytest.raises(IndexError, match=f"sample {index} of"):
            train[index]


def test_description_and_its_hash(tmp_path):
    write_documents(tmp_path / "d", [100] * 100)
    cache = tmp_path / "c"
    build(tmp_path, samples=(50, 10, None), split="969, 30, 1", data_cache_path=str(cache))
    prefix = tmp_path / "d"
    expected = f"""{{
    "class": "GPTDataset",
    "dataset_path": "{prefix}",
    "num_samples": 10,
    "index_split": "valid",
    "random_seed": 1234,
    "sequence_length": 8,
    "split": "969, 30, 1",
    "split_matrix": [
        [
            0,
            0.969
        ],
        [
            0.969,
            0.999
        ],
        [
            0.999,
            1.0
        ]
    ],
    "tokenizer": {{
        "class": "FakeTokenizer",
        "tokenizer_path": [
            null
        ],
        "vocab_size": "100"
    }}
}}"""
    digest = hashlib.md5(expected.encode()).hexdigest()
    assert (cache / f"{digest}-GPTDataset-valid-description.txt").read_text() == expected
    assert np.load(cache / f"{digest}-GPTDataset-valid-sample_index.npy").shape[1] == 2


def test_per_sample_flags_do_not_enter_the_hash(tmp_path):
    write_documents(tmp_path / "d", LENGTHS)
    plain = build(tmp_path).train
    other = build(
        tmp_path, eod_mask_loss=True, reset_position_ids=True, reset_attention_mask=True,
        mmap_bin_files=False,
    ).train  # fmt: skip
    assert plain.identity == other.identity


def test_mock_data(tmp_path):
    data = config(mock_data=True, seq_length=64)
    train, valid, test = build_datasets(
        data, FakeTokenizer(eod=5000), seed=3, num_samples=(100, 10, 10)
    )
    lengths = np.random.default_rng(0).integers(1, 4096, size=100_000, dtype=np.int32)
    assert lengths[:6].tolist() == [3484, 2609, 2094, 1105, 1261, 168]
    assert int(lengths.sum(dtype=np.int64)) == 204637097
    sequences = [
        np.concatenate([np.arange(1, n), [5000]]) if i < 33334 else None
        for i, n in enumerate(lengths.tolist())
    ]
    wanted = build_indices(lengths, 0, 33333, sequence_length=64, num_samples=100, seed=3)
    for i in (0, 1, 50, 99):
        text = sample_text(sequences, wanted, i)
        np.testing.assert_array_equal(train[i].tokens, text[:-1])
        np.testing.assert_array_equal(train[i].labels, text[1:])
    assert json.loads(json.dumps(train.identity))["dataset_path"] is None
    assert train.identity["class"] == "MockGPTDataset"
    assert train.identity["split"] == "1,1,1"
    assert len(valid) > 10
    assert len(test) > 10


def test_mock_data_fits_small_vocabularies():
    train = build_datasets(
        config(mock_data=True), FakeTokenizer(), seed=3, num_samples=(10, None, None)
    ).train
    tokens, labels = np.empty((10, 8), np.int64), np.empty((10, 8), np.int64)
    train.gather(np.arange(10), np.arange(10), vocab_size=100, tokens=tokens, labels=labels)
    assert tokens.min() >= 0
    assert tokens.max() < 100


def test_ids_beyond_the_vocabulary_are_named(tmp_path):
    write_documents(tmp_path / "d", [30])
    train = build(tmp_path, samples=(1, None, None)).train
    tokens, labels = np.empty((1, 8), np.int64), np.empty((1, 8), np.int64)
    with pytest.raises(DataError, match=r"d, sequence 0, item \d+: expected a token id from 0 to"):
        train.gather(np.array([0]), np.array([0]), vocab_size=3, tokens=tokens, labels=labels)


def test_float_datasets_hold_no_tokens(tmp_path):
    write_documents(tmp_path / "d", [30], dtype=np.float32)
    with pytest.raises(DataError, match="expected integer token ids, found float32"):
        build(tmp_path)


def test_split_without_documents(tmp_path):
    write_documents(tmp_path / "d", [100] * 10)
    with pytest.raises(DataError, match=r"10 sequences, of which --split .* none for the valid"):
        build(tmp_path, samples=(10, 10, None), split="969, 30, 1")
    assert build(tmp_path, samples=(10, None, None), split="969, 30, 1").valid is None


def test_dataset_without_tokens_or_sequences(tmp_path):
    write_documents(tmp_path / "d", [0, 0])
    with pytest.raises(DataError, match="none of the 2 documents has a token"):
        build(tmp_path)
    write_documents(tmp_path / "d", [30])
    with pytest.raises(DataError, match="has 1 sequences"):
        build(tmp_path, samples=(1, 1, None), split="1,1,0")


def test_one_epoch_shorter_than_a_sample(tmp_path):
    write_documents(tmp_path / "d", [8])
    documents = indexed_documents(IndexedDataset(str(tmp_path / "d")))
    with pytest.raises(DataError, match=r"8 tokens in 1 documents are less than one sample of 8"):
        GPTDataset(
            documents, identity={"class": "GPTDataset"}, split="train", num_samples=None,
            sequence_length=8, seed=1, rules=Rules(), cache=None,
        )  # fmt: skip
    assert len(build(tmp_path, samples=(3, None, None)).train) == 3


@pytest.mark.parametrize(
    ("flag", "needed"),
    [("eod_mask_loss", True), ("reset_position_ids", True), ("mmap_bin_files", False)],
)
def test_tokenizers_without_end_of_document(tmp_path, flag, needed):
    write_documents(tmp_path / "d", LENGTHS)
    tokenizer = FakeTokenizer(eod=None)
    if needed:
        with pytest.raises(DataError, match="no end-of-document token"):
            build(tmp_path, tokenizer=tokenizer, **{flag: True})
    else:
        assert len(build(tmp_path, tokenizer=tokenizer, **{flag: True}).train) > 0


def test_index_files_of_other_data_are_refused_where_they_lead_astray(tmp_path):
    write_documents(tmp_path / "d", LENGTHS)
    source = indexed_documents(IndexedDataset(str(tmp_path / "d"))).source
    tokens, labels = np.empty((1, 8), np.int64), np.empty((1, 8), np.int64)
    cases = [
        ([0, 1], [[0, 0], [5, 0]], [0], "document position 5"),
        ([0, 77], [[1, 0], [1, 7]], [0], "document 77"),
        ([2, 2], [[0, 0], [0, 11]], [0], "token count 12"),
        ([2, 2], [[0, 9], [0, 17]], [0], "expected items within its 17"),
        ([2, 2], [[0, -3], [0, 3]], [0], "expected items within its 17"),
        ([2, 2], [[0, 0], [0, 8]], [4], "shuffled number 4"),
    ]
    for documents, rows, shuffle, message in cases:
        gather = _C.data.GptGather(
            source, np.array(documents, dtype=np.int32), np.array(rows, dtype=np.int64),
            np.array(shuffle, dtype=np.uint32), sequence_length=8, pad_id=-1,
        )  # fmt: skip
        with pytest.raises(DataError, match=message):
            gather.gather([0], [0], 100, tokens, labels)
    with pytest.raises(DataError, match="do not belong together"):
        _C.data.GptGather(
            source, np.array([0], dtype=np.int32), np.zeros((3, 2), dtype=np.int64),
            np.array([0], dtype=np.uint32), sequence_length=8, pad_id=-1,
        )  # fmt: skip

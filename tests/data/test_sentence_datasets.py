"""Samples of BERT, T5 and the inverse cloze task against slow transcriptions, and bad input."""

from __future__ import annotations

import itertools
import json
import logging

import numpy as np
import pytest
import reference_masking as reference
from dataset_fixtures import FakeTokenizer, config, write_documents
from sentence_fixtures import WordPieces, write_sentences, write_titles

from megacore.data import build_datasets
from megacore.data.bert_dataset import BertKind, make_bert_batch
from megacore.data.blended_dataset import BlendedDataset
from megacore.data.config import TokenizerConfig
from megacore.data.ict_config import IctConfig
from megacore.data.ict_dataset import IctKind, make_ict_batch
from megacore.data.masking import MaskingConfig
from megacore.data.t5_dataset import T5Kind, make_t5_batch
from megacore.errors import DataError

SEED = 2**32 - 3  # sample numbers carry it over 2^32
DOCUMENTS = [3, 1, 7, 2, 12, 0, 5, 1, 30, 4] * 3
MASKINGS = [
    MaskingConfig(decoder_seq_length=14),
    MaskingConfig(mask_prob=0.37, short_seq_prob=0.5, decoder_seq_length=19),
    MaskingConfig(mask_prob=0.9, short_seq_prob=0.0, decoder_seq_length=9),
]


def build(kind, tokenizer=None, *, samples=(200, None, None), seed=SEED, may_build=True, **data):
    settings = {"split": "1", "seq_length": 40, **data}
    if "train_data_path" in settings or settings.get("mock_data"):
        settings["split"] = None
    return build_datasets(
        config(**settings),
        tokenizer or WordPieces(),
        seed=seed,
        num_samples=samples,
        kind=kind,
        may_build=may_build,
    )


def assert_equal(sample, wanted):
    for name, value in wanted.items():
        np.testing.assert_array_equal(sample[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize("two_parts", [True, False])
@pytest.mark.parametrize("masking", MASKINGS)
def test_bert_samples(tmp_path, masking, two_parts):
    tokenizer = WordPieces()
    sentences = write_sentences(tmp_path / "text", DOCUMENTS, special=True)
    kind = BertKind(masking, binary_head=two_parts)
    train = build(kind, data_path=(str(tmp_path / "text"),)).train
    assert len(train) >= 200
    for index in range(len(train)):
        first, last, target = train.sample_map[index].tolist()
        wanted = reference.bert_sample(
            sentences[first:last], target, index, tokenizer.reference(),
            seed=SEED, length=40, probability=masking.mask_prob, two_parts=two_parts,
        )  # fmt: skip
        assert_equal(train[index], wanted)
    swapped = [train[i]["is_random"].item() for i in range(200)]
    assert (60 < sum(swapped) < 140) if two_parts else not any(swapped)


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("sentinels", [20, 2])
def test_t5_samples(tmp_path, masking, sentinels):
    tokenizer = WordPieces(sentinels)
    sentences = write_sentences(tmp_path / "text", DOCUMENTS, special=True)
    train = build(T5Kind(masking), tokenizer, data_path=(str(tmp_path / "text"),)).train
    for index in range(len(train)):
        first, last, target = train.sample_map[index].tolist()
        wanted = reference.t5_sample(
            sentences[first:last], target, index, tokenizer.reference(),
            seed=SEED, length=40, decoder_length=masking.decoder_seq_length,
            probability=masking.mask_prob,
        )  # fmt: skip
        assert_equal(train[index], wanted)


@pytest.mark.parametrize("stays", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("one_sentence", [True, False])
def test_ict_samples(tmp_path, stays, one_sentence):
    tokenizer = WordPieces()
    sentences = write_sentences(tmp_path / "text", DOCUMENTS)
    titles = write_titles(tmp_path / "titles", len(DOCUMENTS))
    ict = IctConfig(
        titles_data_path=str(tmp_path / "titles"),
        query_in_block_prob=stays,
        use_one_sent_docs=one_sentence,
    )
    train = build(IctKind(ict), data_path=(str(tmp_path / "text"),)).train
    for index in range(len(train)):
        first, last, document, block = train.sample_map[index].tolist()
        wanted = reference.ict_sample(
            sentences[first:last], titles[document], index, tokenizer.reference(),
            seed=SEED, length=40, query_in_block=stays,
        )  # fmt: skip
        assert_equal(train[index], {**wanted, "block_data": [first, last, document, block]})
    names = [path.name for path in tmp_path.glob("text_train_indexmap_*")]
    one = "_1sentok" if one_sentence else ""
    assert sorted(names) == [
        f"text_train_indexmap_200mns_40msl_{SEED}s{one}-{name}"
        for name in ("build.lock", "description.txt")
    ] + [f"text_train_indexmap_200mns_40msl_{SEED}s{one}.npy"]


def test_blocks_for_an_index(tmp_path):
    tokenizer = WordPieces()
    sentences = write_sentences(tmp_path / "text", DOCUMENTS)
    titles = write_titles(tmp_path / "titles", len(DOCUMENTS), longest=60)
    kind = IctKind(IctConfig(titles_data_path=str(tmp_path / "titles")))
    train = build(kind, data_path=(str(tmp_path / "text"),)).train
    batch = train.blocks(np.arange(50), vocab_size=100)
    for row, (first, last, document, _) in enumerate(batch.block_data.tolist()):
        block = [t for s in sentences[first:last] for t in s]
        text = [tokenizer.cls, *titles[document][:37], tokenizer.sep]
        text = [*[*text, *block][:39], tokenizer.sep]
        assert batch.context_lengths[row] == len(text)
        assert batch.context_tokens[row, : len(text)].tolist() == text
        assert not batch.context_tokens[row, len(text) :].any()


def test_long_texts_are_masked_as_by_numpy(tmp_path):
    """Hundreds of words: the shuffle and the draws go beyond the generator's state."""
    tokenizer = WordPieces()
    sentences = write_sentences(tmp_path / "text", [40] * 6, longest=120)
    masking = MaskingConfig(decoder_seq_length=700)
    data = {"data_path": (str(tmp_path / "text"),), "seq_length": 1500, "samples": (12, None, None)}
    for kind in (BertKind(masking), T5Kind(masking)):
        train = build(kind, **data).train
        for index in range(12):
            first, last, target = train.sample_map[index].tolist()
            text, words = sentences[first:last], tokenizer.reference()
            asked = {"seed": SEED, "length": 1500, "probability": 0.15}
            if isinstance(kind, BertKind):
                wanted = reference.bert_sample(text, target, index, words, two_parts=True, **asked)
            else:
                wanted = reference.t5_sample(
                    text, target, index, words, decoder_length=700, **asked
                )
            assert_equal(train[index], wanted)


def test_batches_of_blends_and_splits(tmp_path):
    for number, count in enumerate((20, 35)):
        write_sentences(tmp_path / f"d{number}", [4, 9, 2] * count, seed=number)
    path = ("0.3", str(tmp_path / "d0"), "0.7", str(tmp_path / "d1"))
    masking = MaskingConfig(decoder_seq_length=16)
    for kind, make in ((BertKind(masking), make_bert_batch), (T5Kind(masking), make_t5_batch)):
        built = build(kind, data_path=path, split="8,1,1", samples=(90, 30, 10))
        assert isinstance(built.train, BlendedDataset)
        assert None not in built
        chosen = np.random.default_rng(0).permutation(90)[:17]
        batch = make(built.train, chosen, vocab_size=100)
        for row, index in enumerate(chosen.tolist()):
            member = built.train.members[built.train.dataset_index[index]]
            assert_equal(
                {name: tensor[row] for name, tensor in vars(batch).items()},
                member[int(built.train.dataset_sample_index[index])],
            )
        ends = [0, 48, 54, 60]  # documents of 8:1:1 in the first member
        for dataset, (first, last) in zip(built, itertools.pairwise(ends), strict=True):
            rows = dataset.members[0].sample_map
            assert rows[:, 0].min() >= 5 * first
            assert rows[:, 1].max() <= 5 * last
        with pytest.raises(DataError, match="expected a token id from 0 to 29"):
            make(built.train, chosen, vocab_size=30)


def test_padding_mask_of_bert(tmp_path):
    write_sentences(tmp_path / "text", DOCUMENTS)
    train = build(BertKind(MaskingConfig()), data_path=(str(tmp_path / "text"),)).train
    batch = make_bert_batch(train, np.arange(30), vocab_size=100)
    assert batch.padding_mask.sum(1).tolist() == batch.lengths.tolist()
    assert (batch.text[batch.padding_mask == 0] == WordPieces.pad).all()
    assert (batch.labels >= 0).equal(batch.loss_mask > 0)


def test_caches_are_found_again_and_checked(tmp_path):
    write_sentences(tmp_path / "text", DOCUMENTS)
    kind, path = BertKind(MaskingConfig(short_seq_prob=0.2)), (str(tmp_path / "text"),)
    train = build(kind, data_path=path).train
    folder = tmp_path / "text" / "cache" / "BERTMaskedWordPieceDataset_indices"
    names = sorted(file.name[32:] for file in folder.iterdir())
    assert names == [
        "-BERTMaskedWordPieceDataset-build.lock",
        "-BERTMaskedWordPieceDataset-description.txt",
        "-BERTMaskedWordPieceDataset-sample_index.npy",
    ]
    (description,) = folder.glob("*.txt")
    identity = json.loads(description.read_text())
    assert list(identity)[-8:] == [
        "masking_probability",
        "short_sequence_probability",
        "masking_max_ngram",
        "masking_do_full_word",
        "masking_do_permutation",
        "masking_use_longer_ngrams",
        "masking_use_geometric_distribution",
        "classification_head",
    ]
    (stored,) = folder.glob("*.npy")
    before = stored.stat().st_mtime_ns
    again = build(kind, data_path=path, may_build=False).train
    assert stored.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.sample_map, train.sample_map)
    wanted = np.array(train.sample_map)  # not the file, which is damaged now
    stored.write_bytes(stored.read_bytes()[:-5])
    with pytest.raises(DataError, match="does not see the index files"):
        build(kind, data_path=path, may_build=False)
    np.testing.assert_array_equal(build(kind, data_path=path).train.sample_map, wanted)
    build(BertKind(MaskingConfig()), data_path=path)
    assert len(list(folder.glob("*.npy"))) == 2


def test_a_damaged_map_is_never_followed(tmp_path):
    write_sentences(tmp_path / "text", DOCUMENTS)
    path = (str(tmp_path / "text"),)
    for column, value, message in (
        (0, 10**6, "first sentence"),
        (1, 10**6, "end of sentences"),
        (2, 60, "target length"),
        (2, 0, "target length"),
    ):
        for kind in (BertKind(MASKINGS[0]), T5Kind(MASKINGS[0])):
            train = build(kind, data_path=path).train
            folder = tmp_path / "text" / "cache" / f"{kind.class_name}_indices"
            (stored,) = folder.glob("*.npy")
            rows = np.array(train.sample_map)
            rows[5, column] = value
            np.save(stored, rows)
            with pytest.raises(DataError, match=f"sample 5: {message}"):
                build(kind, data_path=path).train[5]
            stored.unlink()


def test_mock_data():
    masking = MaskingConfig(decoder_seq_length=20)
    for kind, make in (
        (BertKind(masking), make_bert_batch),
        (T5Kind(masking), make_t5_batch),
        (IctKind(IctConfig()), make_ict_batch),
    ):
        built = build(kind, mock_data=True, samples=(300, 100, 100))
        batch = make(built.train, np.arange(64), vocab_size=WordPieces.vocab_size)
        assert batch.loss_mask.sum() > 0
        assert built.train.identity["class"].startswith("Mock")


def test_datasets_of_the_wrong_kind(tmp_path, caplog):
    write_documents(tmp_path / "documents", [700, 20, 900])
    for kind in (BertKind(MaskingConfig()), T5Kind(MASKINGS[0]), IctKind(IctConfig())):
        with pytest.raises(DataError, match=r"dataset of whole documents .* --split-sentences"):
            build(kind, data_path=(str(tmp_path / "documents"),))
    write_sentences(tmp_path / "sentences", DOCUMENTS)
    with caplog.at_level(logging.WARNING, logger="megacore.data"):
        build_datasets(
            config(data_path=(str(tmp_path / "sentences"),), split="1"),
            FakeTokenizer(),
            seed=1,
            num_samples=(5, None, None),
        )
    assert "30 documents have 195 sequences, as after --split-sentences" in caplog.text


@pytest.mark.parametrize("missing", ["cls", "sep", "mask", "pad", "bos", "eos"])
def test_vocabularies_without_special_tokens(missing):
    tokenizer = WordPieces(without=missing)
    with pytest.raises(DataError, match=r"cannot be used for T5: it has no .*token|\["):
        build(T5Kind(MASKINGS[0]), tokenizer, mock_data=True)
    if missing not in ("bos", "eos"):
        with pytest.raises(DataError, match="cannot be used for BERT"):
            build(BertKind(MASKINGS[0]), tokenizer, mock_data=True)


def test_sentinels_are_needed():
    with pytest.raises(DataError, match="--vocab-extra-ids 100"):
        build(T5Kind(MASKINGS[0]), WordPieces(0), mock_data=True)


def test_titles(tmp_path):
    write_sentences(tmp_path / "text", DOCUMENTS)
    write_titles(tmp_path / "titles", 3)
    path = (str(tmp_path / "text"),)
    with pytest.raises(DataError, match=r"has 3 titles, but .* has 30 documents"):
        build(IctKind(IctConfig(titles_data_path=str(tmp_path / "titles"))), data_path=path)
    with pytest.raises(DataError, match="nowhere"):
        build(IctKind(IctConfig(titles_data_path=str(tmp_path / "nowhere"))), data_path=path)


def ids(kind, *, extra_ids=100, max_positions=512, **data):
    data = config(**{"seq_length": 512, "mock_data": True, **data})
    tokenizer = TokenizerConfig(vocab_extra_ids=extra_ids)
    return [fault.id for fault in kind.faults(data, tokenizer, max_positions=max_positions)]


def test_faults():
    usual = MaskingConfig(decoder_seq_length=128)
    assert ids(T5Kind(usual)) == ids(BertKind(MaskingConfig())) == []
    assert ids(T5Kind(MaskingConfig())) == ["MC0101"]
    assert ids(T5Kind(usual), extra_ids=0) == ids(T5Kind(usual), extra_ids=17) == ["MC1304"]
    assert ids(T5Kind(usual), extra_ids=18) == []
    assert ids(T5Kind(MaskingConfig(decoder_seq_length=94))) == ["MC1305"]
    assert ids(T5Kind(MaskingConfig(decoder_seq_length=95))) == []
    assert ids(T5Kind(MaskingConfig(decoder_seq_length=513))) == ["MC1306"]
    assert ids(BertKind(usual)) == ["MC1302"]
    assert ids(BertKind(MaskingConfig()), seq_length=4) == ["MC1303"]
    assert ids(T5Kind(usual), seq_length=3) == ["MC1303"]
    assert ids(BertKind(MaskingConfig()), reset_position_ids=True) == ["MC1301"]
    titles = IctConfig(titles_data_path="t")
    text = {"mock_data": False, "data_path": ("a",)}
    assert ids(IctKind(titles), **text) == []
    assert ids(IctKind(IctConfig()), **text) == ["MC0101"]
    assert ids(IctKind(titles), mock_data=False, data_path=("a", "b", "c")) == ["MC1307"]

"""Tokenized files of conversations, and sequences packed from them."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_cases import TEMPLATES, chat, write_lines, write_tokenizer

from megacore.data.chat.config import SftConfig
from megacore.data.chat.dataset import PackedDataset, Texts
from megacore.data.chat.datasets import build_chat_datasets
from megacore.data.chat.packing import pack
from megacore.data.chat.tokens import TokenizedChats
from megacore.data.config import DataConfig
from megacore.data.loader import build_loader, make_batch
from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megacore.errors import DataError


def texts(lengths: list[int], learned_from: int = 1) -> Texts:
    """Texts of given lengths; the ids of text i are 100 i, 100 i + 1, ..."""
    ids = [100 * i + np.arange(n) for i, n in enumerate(lengths)]
    learned = [(np.arange(n) >= learned_from).astype(np.uint8) for n in lengths]
    file = TokenizedChats(
        Path("chat.jsonl"),
        np.concatenate(ids).astype(np.int32),
        np.concatenate(learned),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(1, len(lengths) + 1),
    )
    return Texts([file], np.zeros(len(lengths), np.int64), np.arange(len(lengths)))


def dataset(some: Texts, **settings: Any) -> PackedDataset:
    defaults = {"name": "chats", "num_samples": None, "sequence_length": 8, "seed": 1}
    return PackedDataset(some, **{**defaults, **settings})


@pytest.mark.parametrize("room", [1, 7, 64])
def test_packing_places_each_text_once_and_none_over_the_edge(room: int) -> None:
    lengths = np.random.default_rng(0).integers(1, room + 1, 500)
    packing = pack(lengths, room=room, seed=3, epoch=0)
    assert sorted(packing.texts.tolist()) == list(range(500))
    used = [
        lengths[packing.texts[a:b]].sum()
        for a, b in zip(packing.bounds[:-1], packing.bounds[1:], strict=True)
    ]
    assert max(used) <= room
    assert min(used) >= 1
    # Nearly full: at most what stays open in the end is not.
    assert sum(used) >= 0.9 * room * (len(packing) - 64)


def test_packing_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 200)
    first = pack(lengths, room=64, seed=3, epoch=0)
    assert np.array_equal(first.texts, pack(lengths, room=64, seed=3, epoch=0).texts)
    assert not np.array_equal(first.texts, pack(lengths, room=64, seed=3, epoch=1).texts)
    assert not np.array_equal(first.texts, pack(lengths, room=64, seed=4, epoch=0).texts)


def test_batch_has_whole_texts_with_positions_and_bounds_of_their_own() -> None:
    lengths = [4, 3, 6, 5, 2, 9, 1 + 8]
    packed = dataset(texts(lengths, learned_from=2))
    samples = np.arange(len(packed))
    batch = make_batch(packed, samples, vocab_size=1000)
    assert batch.cu_seqlens is not None
    bounds = batch.cu_seqlens.tolist()
    assert (bounds[0], bounds[-1]) == (0, 8 * len(packed))
    tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
    mask, positions = batch.loss_mask.flatten(), batch.position_ids.flatten()
    seen = []
    for first, last in itertools.pairwise(bounds):
        assert first // 8 == (last - 1) // 8
        assert positions[first:last].tolist() == list(range(last - first))
        if mask[first:last].sum() == 0:
            assert tokens[first:last].eq(0).all()
            assert last % 8 == 0
            continue
        text = int(tokens[first]) // 100
        seen.append(text)
        size = min(lengths[text] - 1, 8)
        assert tokens[first:last].tolist() == [100 * text + i for i in range(size)]
        assert labels[first:last].tolist() == [100 * text + i + 1 for i in range(size)]
        assert mask[first:last].tolist() == [float(i + 1 >= 2) for i in range(size)]
    # The text of two tokens has none to learn.
    assert sorted(seen) == [0, 1, 2, 3, 5, 6]
    assert packed.num_dropped == 1


def test_texts_that_are_too_long() -> None:
    lengths = [4, 12, 9]
    cut = dataset(texts(lengths))
    assert (cut.num_cut, cut.num_dropped) == (1, 0)
    batch = make_batch(cut, np.arange(len(cut)), vocab_size=1000)
    row = next(r for r in batch.labels.tolist() if r[0] // 100 == 1)
    assert row == [100 + i + 1 for i in range(8)]
    # What is learned lies behind the end of the sequence.
    late = dataset(texts([4, 12], learned_from=3), sequence_length=3)
    assert late.num_cut == 1
    gone = dataset(texts([4, 12], learned_from=3), sequence_length=3, overlong="drop")
    assert (gone.num_cut, gone.num_dropped) == (0, 1)
    with pytest.raises(DataError, match=r"chat.jsonl:2: has 12 tokens, a sequence only 8"):
        dataset(texts(lengths), overlong="refuse")
    with pytest.raises(DataError, match="of 3 texts none has an answer within 1 tokens"):
        dataset(texts(lengths, learned_from=2), sequence_length=1)


def test_passes_are_shuffled_anew_until_there_is_enough() -> None:
    packed = dataset(texts([5] * 10), num_samples=23)
    assert packed.num_epochs == 5
    assert len(packed) == 25
    rows = make_batch(packed, np.arange(25), vocab_size=2000).tokens
    epochs = rows.view(5, -1)
    for epoch in epochs:
        assert sorted(set((epoch // 100).tolist())) == list(range(10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


def test_tokens_outside_of_the_vocabulary_are_named() -> None:
    with pytest.raises(DataError, match=r"chat.jsonl:\d: token id \d+ is not in the vocabulary"):
        make_batch(dataset(texts([5, 5])), np.array([0]), vocab_size=50)


@pytest.fixture
def tokenizer(tmp_path: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(write_tokenizer(tmp_path / "tok", TEMPLATES["chatml"])))


def build(
    path: Path, tokenizer: HuggingFaceTokenizer, *, said: list[str], **settings: Any
) -> PackedDataset:
    may_build = settings.pop("may_build", True)
    data = DataConfig(data_path=(str(path),), seq_length=64, **settings).resolved()
    built = build_chat_datasets(
        SftConfig(sft=True),
        data,
        tokenizer,
        seed=5,
        num_samples=(4, None, None),
        may_build=may_build,
        say=said.append,
    )
    assert built.train is not None
    return built.train


def test_tokens_are_kept_and_made_again_when_the_data_change(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    records = [{"messages": chat(f"What is {i}?", f"It is {i}.")} for i in range(40)]
    path = write_lines(tmp_path / "chat.jsonl", records)
    said: list[str] = []
    first = build(path, tokenizer, said=said, split="1,0,0")
    assert any("tokenized in" in text for text in said)
    said.clear()
    again = build(path, tokenizer, said=said, split="1,0,0", may_build=False)
    assert not any("tokenized" in text for text in said)
    samples = np.arange(4)
    one, other = (make_batch(d, samples, vocab_size=999) for d in (first, again))
    assert one.tokens.equal(other.tokens)
    assert one.loss_mask.equal(other.loss_mask)
    records[3]["messages"][1]["content"] = "It was 3."
    write_lines(path, records)
    with pytest.raises(DataError, match="--data-cache-path"):
        build(path, tokenizer, said=said, split="1,0,0", may_build=False)
    build(path, tokenizer, said=said, split="1,0,0")
    assert any("tokenized in" in text for text in said)
    folders = (tmp_path / "cache" / "chats").iterdir()
    folder = max(folders, key=lambda made: made.stat().st_mtime_ns)
    (folder / "tokens.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match="damaged: remove it"):
        build(path, tokenizer, said=said, split="1,0,0")


def test_wrong_line_leaves_nothing_behind(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": chat("a", "b")}] * 3 + [{"x": 1}])
    with pytest.raises(DataError, match=r"chat.jsonl:4: expected messages"):
        build(path, tokenizer, said=[])
    assert list((tmp_path / "cache" / "chats").iterdir()) == []


def test_replicas_and_a_later_start_see_the_same_sequences(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    records = [{"messages": chat(f"q{i}", "a " * (1 + i % 30))} for i in range(100)]
    path = write_lines(tmp_path / "chat.jsonl", records)
    data = DataConfig(data_path=(str(path),), seq_length=64, split="1,0,0").resolved()
    built = build_chat_datasets(
        SftConfig(sft=True), data, tokenizer, seed=5, num_samples=(80, None, None)
    )
    assert built.train is not None

    def rows(rank: int, size: int, consumed: int) -> list[list[int]]:
        loader = build_loader(
            built.train,
            make=partial(make_batch, vocab_size=999),
            data=data,
            micro_batch_size=2,
            consumed_samples=consumed,
            data_parallel_rank=rank,
            data_parallel_size=size,
        )
        return [row for batch in loader for row in batch.tokens.tolist()]

    alone = rows(0, 1, 0)
    assert alone[40:] == rows(0, 1, 40)
    halves = [rows(rank, 2, 8) for rank in range(2)]
    merged = [row for a in range(0, len(halves[0]), 2) for h in halves for row in h[a : a + 2]]
    assert merged == alone[8 : 8 + len(merged)]


def test_splits_have_different_conversations(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    records = [{"messages": chat(f"question {i}", f"answer {i}")} for i in range(50)]
    path = write_lines(tmp_path / "chat.jsonl", records)
    data = DataConfig(data_path=(str(path),), seq_length=64, split="8,1,1").resolved()
    built = build_chat_datasets(SftConfig(sft=True), data, tokenizer, seed=5, num_samples=(1, 1, 1))
    sets = []
    for part in (built.train, built.valid, built.test):
        assert part is not None
        rows = make_batch(part, np.arange(len(part)), vocab_size=999).tokens
        text = tokenizer.detokenize(rows.flatten().tolist())
        sets.append({i for i in range(50) if f"answer {i}<|im_end|>" in text})
    assert sets == [set(range(40)), set(range(40, 45)), set(range(45, 50))]

"""GPT2BPETokenizer: every engine gives the ids of a slow, literal implementation."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_fixtures import UNICODE_TEXTS, SlowBPE, english, gpt2_files, train_bpe

from megacore.data.tokenizers.bpe_engines import TiktokenEngine, TokenizersEngine, build_engine
from megacore.data.tokenizers.byte_level import (
    BYTE_OF_CHAR,
    CHAR_OF_BYTE,
    ByteLevelFiles,
    read_byte_level_files,
)
from megacore.data.tokenizers.gpt2_bpe import GPT2BPETokenizer
from megacore.data.tokenizers.merge_order import first_ambiguous_merge
from megacore.errors import DataError

# Characters that every library's Unicode tables know: those assigned in Python 3.10's.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=80)
WORDY = st.lists(
    st.sampled_from(
        [*"ab'str .,\n\t\u00e9\u4e2d1", "the", "  ", "\r\n", "'ll", "\U0001f600", "\x00"]
    ),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return train_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def engines(files):
    read = read_byte_level_files(*files)
    return SlowBPE(*files), TiktokenEngine(read), TokenizersEngine(read)


def test_engines_agree_on_english(engines):
    slow, fast, library = engines
    texts = english()
    assert fast.encode(texts) == library.encode(texts)
    for text in texts[:6]:
        assert fast.encode([text]) == [slow.encode(text)]


@pytest.mark.parametrize("text", UNICODE_TEXTS[:-2] + UNICODE_TEXTS[-1:], ids=repr)
def test_engines_agree_on_awkward_text(engines, text):
    slow, fast, library = engines
    assert fast.encode([text]) == library.encode([text]) == [slow.encode(text)]


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(TEXT, WORDY))
def test_engines_agree_on_any_text(engines, text):
    slow, fast, library = engines
    assert fast.encode([text]) == library.encode([text]) == [slow.encode(text)]


@settings(deadline=None, max_examples=200)
@given(text=st.one_of(TEXT, WORDY))
def test_text_comes_back(files, text):
    tokenizer = GPT2BPETokenizer(*files)
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_flat_batch_is_the_ids_one_after_the_other(files):
    tokenizer = GPT2BPETokenizer(*files)
    texts = [*UNICODE_TEXTS, *english()[:3]]
    ids, lengths = tokenizer.tokenize_flat(texts)
    expected = tokenizer.tokenize_batch(texts)
    assert lengths.tolist() == [len(one) for one in expected]
    assert ids.tolist() == list(itertools.chain.from_iterable(expected))
    empty_ids, empty_lengths = tokenizer.tokenize_flat([])
    assert empty_ids.shape == empty_lengths.shape == (0,)


def test_auto_takes_tiktoken_and_special_text_is_text(files):
    tokenizer = GPT2BPETokenizer(*files)
    vocab = json.loads(Path(files[0]).read_text())
    assert tokenizer.backend == "tiktoken"
    assert tokenizer.vocab_size == len(vocab) == 800
    assert tokenizer.eod == vocab["<|endoftext|>"] == 799
    assert tokenizer.pad == -1
    assert 799 not in tokenizer.tokenize("a<|endoftext|>b")
    assert tokenizer.detokenize([799]) == "<|endoftext|>"
    assert tokenizer.identity() == {"class": "_GPT2BPETokenizer", "tokenizer_path": list(files)}


def test_ids_need_not_follow_the_merges(files, tmp_path):
    vocab = json.loads(Path(files[0]).read_text())
    ids = list(range(len(vocab)))
    random.Random(5).shuffle(ids)
    shuffled = dict(zip(vocab, ids, strict=True))
    (tmp_path / "vocab.json").write_text(json.dumps(shuffled))
    tokenizer = GPT2BPETokenizer(str(tmp_path / "vocab.json"), files[1])
    library = TokenizersEngine(read_byte_level_files(str(tmp_path / "vocab.json"), files[1]))
    assert tokenizer.backend == "tiktoken"
    texts = english()[:5] + UNICODE_TEXTS
    assert tokenizer.tokenize_batch(texts) == library.encode(texts)
    assert [tokenizer.detokenize(one) for one in library.encode(texts)] == texts


def hand_made(pairs: list[tuple[str, str]]) -> ByteLevelFiles:
    vocab = {char: i for i, char in enumerate(BYTE_OF_CHAR)}
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
    return ByteLevelFiles(vocab, pairs)


@pytest.mark.parametrize(
    ("pairs", "text", "tokens"),
    [
        # bc is joined first, so abc = ab + c never is; a rank engine would spell it a + bc.
        ([("b", "c"), ("a", "b"), ("ab", "c")], "abc", ["a", "bc"]),
        # Two merges make one token.
        ([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], "abc", ["abc"]),
        # A merge that uses a token before it is made.
        ([("ab", "c"), ("a", "b")], "abc", ["abc"]),
        # aa|a is joined from the left; a|aa never stands.
        ([("a", "a"), ("a", "aa")], "aaa", ["aa", "a"]),
    ],
)
def test_merges_that_ranks_cannot_tell_fall_back_to_tokenizers(pairs, text, tokens):
    files = hand_made(pairs)
    with pytest.raises(DataError):
        TiktokenEngine(files)
    engine = build_engine(files, "auto")
    assert engine.name == "tokenizers"
    assert engine.encode([text]) == [[files.vocab[token] for token in tokens]]
    with pytest.raises(DataError, match="--tokenizer-backend tokenizers"):
        build_engine(files, "tiktoken")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7))
def test_the_criterion_of_ranks_is_exact(choices):
    """Random merges over two letters: no fault means equal ids on every short text, and back."""
    tokens, merges = ["a", "b"], []
    for left, right in choices:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    rank_of = dict(BYTE_OF_CHAR.items())
    lefts, rights = list(range(256)), list(range(256))
    for left, right in merges:
        lefts.append(rank_of[left])
        rights.append(rank_of[right])
        rank_of[left + right] = len(lefts) - 1
    slow = object.__new__(SlowBPE)
    slow.rank = {pair: i for i, pair in enumerate(merges)}

    def by_rank(text: str) -> list[str]:
        # What a rank engine does: join the two neighbours that spell the token of lowest rank.
        parts = list(text)
        while True:
            spelt = [
                (rank_of[parts[i] + parts[i + 1]], i)
                for i in range(len(parts) - 1)
                if parts[i] + parts[i + 1] in rank_of
            ]
            if not spelt:
                return parts
            _, i = min(spelt)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    texts = ["".join(t) for n in range(1, 10) for t in itertools.product("ab", repeat=n)]
    equal = all(slow.join(list(text)) == by_rank(text) for text in texts)
    offender = first_ambiguous_merge(lefts, rights)
    if offender is None:
        assert equal
    else:
        left, right = merges[offender - 256]
        assert slow.join(list(left + right)) != [left + right]


def test_a_vocabulary_without_all_bytes_says_so(files, tmp_path):
    vocab = json.loads(Path(files[0]).read_text())
    gone = CHAR_OF_BYTE[0x01]
    kept = [token for token in vocab if gone not in token]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(kept)}))
    tokenizer = GPT2BPETokenizer(str(tmp_path / "vocab.json"), files[1])
    assert tokenizer.detokenize(tokenizer.tokenize("plain text")) == "plain text"
    with pytest.raises(DataError, match="0x01"):
        tokenizer.tokenize("bell \x01")


def test_no_end_of_text_is_an_error_only_when_it_is_needed(files, tmp_path):
    vocab = json.loads(Path(files[0]).read_text())
    del vocab["<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = GPT2BPETokenizer(str(tmp_path / "vocab.json"), files[1])
    assert tokenizer.tokenize("abc")
    with pytest.raises(DataError, match="endoftext"):
        _ = tokenizer.eod


@pytest.mark.parametrize("ids", [[-1], [800], [5, 10**6]])
def test_an_id_outside_cannot_be_decoded(files, ids):
    with pytest.raises(DataError, match="token id"):
        GPT2BPETokenizer(*files).detokenize(ids)


def test_a_merges_file_without_version_line_loses_nothing(files, tmp_path):
    lines = Path(files[1]).read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("#version")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    without = read_byte_level_files(files[0], str(tmp_path / "merges.txt"))
    assert without.merges == read_byte_level_files(*files).merges


def test_wrong_files_are_named(files, tmp_path):
    vocab, merges = files
    garbage = tmp_path / "garbage.bin"
    garbage.write_bytes(bytes(range(256)))
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"a": 0, "b": 1}))
    gap = tmp_path / "gap.json"
    gap.write_text(json.dumps({"a": 0, "b": 2}))
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"a": "x"}))
    a_list = tmp_path / "list.json"
    a_list.write_text("[1, 2]")
    for given_files, culprit, reason in [
        ((merges, merges), merges, "JSON"),
        ((vocab, vocab), vocab, "line 1"),
        ((str(garbage), merges), garbage, "JSON"),
        ((vocab, str(garbage)), garbage, "UTF-8"),
        ((str(empty), merges), empty, "empty"),
        ((str(other), merges), other, "belong together"),
        ((str(gap), merges), gap, "0 to 1"),
        ((str(texts), merges), texts, "integer"),
        ((str(a_list), merges), a_list, "object"),
        ((str(tmp_path / "no.json"), merges), "no.json", "No such file"),
        ((str(tmp_path), merges), tmp_path, "directory"),
    ]:
        with pytest.raises(DataError) as caught:
            GPT2BPETokenizer(*given_files)
        assert str(culprit) in str(caught.value)
        assert reason in str(caught.value)


def test_gigatoken_agrees_or_is_refused(files):
    pytest.importorskip("gigatoken", reason="the optional package gigatoken is not installed")
    tokenizer = GPT2BPETokenizer(*files, backend="gigatoken")
    assert tokenizer.tokenize_batch(english()) == GPT2BPETokenizer(*files).tokenize_batch(english())


def test_gigatoken_that_gives_other_ids_is_refused(files, monkeypatch):
    """The self check is what stands between a faulty release and somebody's data."""
    import sys
    import types

    class Faulty:
        def __init__(self, engine):
            self.engine = engine

        @classmethod
        def from_json(cls, data):
            from tokenizers import Tokenizer

            return cls(Tokenizer.from_str(data))

        def encode_batch_list(self, texts, *, parallel=None):
            batch = [self.engine.encode(text, add_special_tokens=False).ids for text in texts]
            return [ids[:-1] if len(ids) > 100 else ids for ids in batch]

    monkeypatch.setitem(sys.modules, "gigatoken", types.SimpleNamespace(Tokenizer=Faulty))
    with pytest.raises(DataError, match="does not give the ids"):
        GPT2BPETokenizer(*files, backend="gigatoken")
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(DataError, match="pip install gigatoken"):
        GPT2BPETokenizer(*files, backend="gigatoken")


def test_the_original_vocabulary():
    files = gpt2_files()
    fast = GPT2BPETokenizer(*files)
    library = GPT2BPETokenizer(*files, backend="tokenizers")
    assert (fast.backend, library.backend) == ("tiktoken", "tokenizers")
    assert (fast.vocab_size, fast.eod) == (50257, 50256)
    assert fast.tokenize("hello world") == [31373, 995]
    texts = english() + UNICODE_TEXTS
    assert fast.tokenize_batch(texts) == library.tokenize_batch(texts)


def test_character_table_is_a_bijection_of_printable_characters():
    assert sorted(BYTE_OF_CHAR.values()) == list(range(256))
    assert all(unicodedata.category(char)[0] != "C" and char != " " for char in BYTE_OF_CHAR)

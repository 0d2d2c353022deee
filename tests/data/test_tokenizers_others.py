"""BERT, sentencepiece, tiktoken-list, Hugging Face and Null tokenizers; vocabulary padding."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import CACHE, UNICODE_TEXTS, english, train_bpe

from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import Tokenizer, build_tokenizer, padded_vocab_size
from megacore.errors import ConfigError, DataError


def build(kind: str, **settings_: object) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(tokenizer_type=kind, **settings_))


# ----- padding


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [
        (50257, (50304, 50432, 50688, 51200)),
        (30524, (30592, 30720, 30720, 30720)),
        (128256, (128256, 128256, 128512, 129024)),
        (32000, (32000, 32000, 32256, 32768)),
    ],
)
def test_padded_vocab_size(vocab_size, expected):
    found = tuple(
        padded_vocab_size(vocab_size, make_divisible_by=128, tensor_parallel_size=tp)
        for tp in (1, 2, 4, 8)
    )
    assert found == expected


def test_padding_to_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        padded_vocab_size(10, make_divisible_by=0)


# ----- BERT

BERT_VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("hello", "world", "Hello", "naive", "na\u00efve", "un", "##want", "##ed", ",", "!", "[", "]"),
    *("mask", "MASK", "\u4e2d", "\u6587", "runn", "##ing", "a", "##a"),
]


@pytest.fixture
def bert_vocab(tmp_path: Path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_VOCAB) + "\n", encoding="utf-8")
    return str(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("kind", "text", "tokens"),
    [
        ("LowerCase", "Hello, WORLD!", "hello , world !"),
        ("Case", "Hello, WORLD!", "Hello , [UNK] !"),
        ("LowerCase", "na\u00efve", "naive"),
        ("Case", "na\u00efve", "na\u00efve"),
        ("LowerCase", "unwanted running", "un ##want ##ed runn ##ing"),
        ("LowerCase", "\u4e2d\u6587hello", "\u4e2d \u6587 hello"),
        ("LowerCase", "[MASK]", "[ mask ]"),
        ("Case", "[MASK]", "[ MASK ]"),
        ("LowerCase", "hello\x00\u200bworld", "[UNK]"),
        ("LowerCase", "  \t\n ", ""),
        ("LowerCase", "a" * 200, "a " + "##a " * 199),
        ("LowerCase", "a" * 201, "[UNK]"),
    ],
)
def test_bert_splits_words(bert_vocab, kind, text, tokens):
    tokenizer = build(f"BertWordPiece{kind}", vocab_file=bert_vocab)
    assert tokenizer.tokenize(text) == [BERT_VOCAB.index(token) for token in tokens.split()]


def test_bert_special_ids(bert_vocab):
    tokenizer = build("BertWordPieceLowerCase", vocab_file=bert_vocab, vocab_extra_ids=3)
    n = len(BERT_VOCAB)
    assert tokenizer.vocab_size == n + 5
    assert (tokenizer.cls, tokenizer.sep, tokenizer.pad, tokenizer.mask) == (2, 3, 0, 4)
    assert (tokenizer.bos, tokenizer.eos) == (n, n + 1)
    assert tokenizer.extra_ids == [n + 2, n + 3, n + 4]
    with pytest.raises(
        DataError, match=r"no an end-of-document|no end-of-document|end-of-document"
    ):
        _ = tokenizer.eod
    assert tokenizer.detokenize([2, 10, 11, 12, 0, n + 2]) == "unwanted <extra_id_0>"
    assert tokenizer.identity() == {
        "class": "_BertWordPieceTokenizer",
        "tokenizer_path": [bert_vocab],
        "lower_case": "True",
        "vocab_extra_ids": "3",
    }


def test_bert_keeps_bos_that_the_vocabulary_has(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[BOS]", *BERT_VOCAB]), encoding="utf-8")
    tokenizer = build("BertWordPieceCase", vocab_file=str(path))
    assert tokenizer.bos == 0
    assert tokenizer.eos == len(BERT_VOCAB) + 1
    assert tokenizer.vocab_size == len(BERT_VOCAB) + 2


def test_bert_equals_transformers_on_english(tmp_path):
    transformers = pytest.importorskip("transformers")
    from megacore.data.tokenizers.training import train_word_piece

    trained = train_word_piece(iter(english()[:30]), str(tmp_path), vocab_size=600)
    ours = build("BertWordPieceLowerCase", vocab_file=trained.files[0])
    theirs = transformers.BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=True)
    for text in english()[:10]:
        assert ours.tokenize(text) == theirs(text, add_special_tokens=False)["input_ids"]


# ----- sentencepiece


@pytest.fixture(scope="module")
def spm_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import sentencepiece

    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join(english()[:30]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "small"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        user_defined_symbols=["<SEP>"],
    )
    return str(folder / "small.model")


def reference(model: str):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=model)


def test_gpt_sentencepiece_is_the_model(spm_model):
    tokenizer, model = (
        build("GPTSentencePieceTokenizer", tokenizer_model=spm_model),
        reference(spm_model),
    )
    assert tokenizer.vocab_size == model.vocab_size() == 400
    assert (tokenizer.eod, tokenizer.bos, tokenizer.pad) == (model.eos_id(), model.bos_id(), -1)
    for text in english()[:5] + UNICODE_TEXTS:
        assert tokenizer.tokenize(text) == model.encode(text)
    assert tokenizer.detokenize(model.encode("def f(x): return")) == "def f(x): return"
    with pytest.raises(DataError, match="token id 400"):
        tokenizer.detokenize([400])


def test_llama2_puts_bos_first(spm_model):
    tokenizer, model = build("Llama2Tokenizer", tokenizer_model=spm_model), reference(spm_model)
    assert tokenizer.tokenize("the list") == [model.bos_id(), *model.encode("the list")]
    assert tokenizer.tokenize("") == [model.bos_id()]
    assert tokenizer.pad == -1
    assert tokenizer.eod == model.eos_id()
    assert tokenizer.identity()["class"] == "_Llama2Tokenizer"


def test_sentencepiece_appends_its_special_tokens(spm_model):
    tokenizer = build("SentencePieceTokenizer", tokenizer_model=spm_model, vocab_extra_ids=2)
    model = reference(spm_model)
    # The model has <SEP>, <s> and </s>; absent are <CLS>, <EOD>, <MASK>, a pad and the sentinels.
    assert tokenizer.sep == model.piece_to_id("<SEP>")
    assert [tokenizer.cls, tokenizer.eod, tokenizer.mask, tokenizer.pad] == [400, 401, 402, 403]
    assert [tokenizer.bos, tokenizer.eos] == [model.bos_id(), model.eos_id()]
    assert tokenizer.extra_ids == [404, 405]
    assert tokenizer.vocab_size == 406


def test_sentencepiece_finds_special_tokens_in_text(spm_model):
    tokenizer = build("SentencePieceTokenizer", tokenizer_model=spm_model, vocab_extra_ids=12)
    model = reference(spm_model)
    text = "the list<EOD>of <extra_id_1><extra_id_11>names</s>"
    expected = [
        *model.encode("the list"),
        401,
        *model.encode("of "),
        tokenizer.extra_ids[1],
        tokenizer.extra_ids[11],
        *model.encode("names"),
        model.eos_id(),
    ]
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.detokenize(expected).split() == (
        ["the", "list", "<EOD>", "of", "<extra_id_1>", "<extra_id_11>", "names", "</s>"]
    )


def test_a_model_that_is_none_is_named(tmp_path):
    wrong = tmp_path / "wrong.model"
    for content in (b'{"a": 0}', bytes(range(256)) * 9, b""):
        wrong.write_bytes(content)
        with pytest.raises(DataError, match=r"wrong\.model"):
            build("Llama2Tokenizer", tokenizer_model=str(wrong))


def test_the_models_of_mistral():
    model = CACHE / "tokenizer.model.v1"
    if not model.is_file():
        pytest.skip(
            f"{model} is not there: copy it from the package mistral-common 1.13.1 to run this test"
        )
    tokenizer = build("Llama2Tokenizer", tokenizer_model=str(model))
    assert (tokenizer.vocab_size, tokenizer.eod) == (32000, 2)
    assert tokenizer.tokenize("hello world") == [1, 6312, 28709, 1526]


# ----- tiktoken list


def rank_list(folder: Path, entries: int = 600) -> tuple[Path, dict[bytes, int]]:
    _vocab_file, merge_file = train_bpe(folder, entries + 1)
    from megacore.data.tokenizers.byte_level import BYTE_OF_CHAR, read_merges

    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in read_merges(merge_file):
        tokens.append(bytes(BYTE_OF_CHAR[char] for char in left + right))
    listed = [
        {
            "rank": i,
            "token_bytes": base64.b64encode(token).decode(),
            "token_str": token.decode("utf-8", "replace"),
        }
        for i, token in enumerate(tokens)
    ]
    path = folder / "ranks.json"
    path.write_text(json.dumps(listed))
    return path, {token: i for i, token in enumerate(tokens)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, int]]:
    return rank_list(tmp_path_factory.mktemp("tik"))


V1 = r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def test_tik_tokenizer_shifts_ranks_behind_the_special_tokens(ranks):
    import tiktoken

    path, mergeable = ranks
    tokenizer = build(
        "TikTokenizer",
        tokenizer_model=str(path),
        tiktoken_pattern="v1",
        tiktoken_num_special_tokens=10,
        vocab_size=500,
    )
    assert tokenizer.vocab_size == 500
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eod, tokenizer.pad) == (1, 2, 2, -1)
    kept = {token: rank for token, rank in mergeable.items() if rank < 490}
    encoding = tiktoken.Encoding("t", pat_str=V1, mergeable_ranks=kept, special_tokens={})
    for text in english()[:5] + UNICODE_TEXTS:
        expected = [rank + 10 for rank in encoding.encode_ordinary(text)]
        assert tokenizer.tokenize(text) == expected
        assert tokenizer.detokenize(expected) == text
    assert tokenizer.detokenize([1, 10 + ord("a"), 5, 2]) == "<s>a<SPECIAL_5></s>"


def test_tik_patterns_differ_where_they_should(ranks):
    path, _ = ranks
    common = {"tokenizer_model": str(path), "tiktoken_num_special_tokens": 3}
    v1 = build("TikTokenizer", tiktoken_pattern="v1", **common)
    v2 = build("TikTokenizer", tiktoken_pattern="v2", **common)
    # v2 cuts before capitals, so "theList" is never one word; both take digits one by one.
    assert v1.vocab_size == v2.vocab_size == 131072
    assert v2.tokenize("theList") == v2.tokenize("the") + v2.tokenize("List")
    assert v1.tokenize("12") == v2.tokenize("12") == [3 + ord("1"), 3 + ord("2")]
    assert v1.identity()["pattern"] == V1


def test_tik_special_tokens_are_named(ranks):
    path, _ = ranks
    tokenizer = build(
        "TikTokenizer",
        tokenizer_model=str(path),
        tiktoken_pattern="v2",
        tiktoken_num_special_tokens=5,
        tiktoken_special_tokens=("</s>", "<pad>", "<s>", "<unk>"),
    )
    assert (tokenizer.eod, tokenizer.bos) == (0, 2)
    assert tokenizer.detokenize([1, 4]) == "<pad><SPECIAL_4>"


def test_tik_real_file_has_pattern_v2():
    path = CACHE / "tekken_240911.json"
    if not path.is_file():
        pytest.skip(
            f"{path} is not there: copy it from the package mistral-common 1.13.1 to run this test"
        )
    from megacore.data.tokenizers.tiktoken_ranks import PATTERNS, TikTokenizer

    file = json.loads(path.read_text(encoding="utf-8"))
    assert file["config"]["pattern"] == PATTERNS["v2"]
    ranks_only = path.with_name("tekken_ranks.json")
    ranks_only.write_text(json.dumps(file["vocab"]))
    tokenizer = TikTokenizer(str(ranks_only), pattern="v2")
    assert (
        tokenizer.detokenize(tokenizer.tokenize("caf\u00e9 \U0001f600")) == "caf\u00e9 \U0001f600"
    )


def break_ranks(entries: list[dict[str, object]], how: str) -> object:
    if how == "dict":
        return {"vocab": entries}
    if how == "key":
        del entries[300]["token_str"]
    if how == "rank":
        entries[300]["rank"] = 7
    if how == "base64":
        entries[300]["token_bytes"] = "***"
    if how == "byte":
        entries[65]["token_bytes"] = base64.b64encode(b"B").decode()
    if how == "twice":
        entries[301]["token_bytes"] = entries[300]["token_bytes"]
    return entries if how != "short" else entries[:100]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dict", "JSON list"),
        ("key", "entry 300"),
        ("rank", "entry 300: expected rank 300, found 7"),
        ("base64", "entry 300.*base64"),
        ("byte", "entry 65"),
        ("twice", "entry 301"),
        ("short", "256 bytes"),
    ],
)
def test_wrong_rank_files_are_named(ranks, tmp_path, how, message):
    entries = json.loads(ranks[0].read_text())
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(break_ranks(entries, how)))
    with pytest.raises(DataError, match=rf"broken\.json.*{message}"):
        build("TikTokenizer", tokenizer_model=str(path), tiktoken_pattern="v1")


def test_too_many_special_tokens_are_refused(ranks):
    with pytest.raises(DataError, match="num-special-tokens"):
        build(
            "TikTokenizer",
            tokenizer_model=str(ranks[0]),
            tiktoken_pattern="v1",
            tiktoken_num_special_tokens=2,
        )


# ----- Hugging Face directory


@pytest.fixture(scope="module")
def hf_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("hf")
    vocab_file, merge_file = train_bpe(folder / "bpe")
    engine = Engine(models.BPE.from_file(vocab_file, merge_file))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|endoftext|>", "<bos>", "<mask>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", engine.token_to_id("<bos>"))]
    )
    engine.enable_truncation(max_length=4)
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<bos>",
                "eos_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
                "mask_token": None,
            }
        )
    )
    return folder


def test_hugging_face_directory_equals_transformers(hf_directory):
    transformers = pytest.importorskip("transformers")
    ours = build("HuggingFaceTokenizer", tokenizer_model=str(hf_directory))
    theirs = transformers.AutoTokenizer.from_pretrained(str(hf_directory), local_files_only=True)
    assert ours.vocab_size == len(theirs) == 802
    assert ours.eod == ours.eos == theirs.eos_token_id
    assert ours.bos == theirs.bos_token_id
    assert ours.pad == -1
    for text in english()[:5] + UNICODE_TEXTS:
        assert ours.tokenize(text) == theirs(text)["input_ids"]
    ids = ours.tokenize("some words")
    assert ids[0] == ours.bos
    assert ours.detokenize(ids) == theirs.decode(ids)
    with pytest.raises(DataError, match="mask_token"):
        _ = ours.mask


def test_hugging_face_file_works_too(hf_directory):
    by_file = build("HuggingFaceTokenizer", tokenizer_model=str(hf_directory / "tokenizer.json"))
    by_folder = build("HuggingFaceTokenizer", tokenizer_model=str(hf_directory))
    assert by_file.tokenize(english()[0]) == by_folder.tokenize(english()[0])


def test_hugging_face_never_goes_online(tmp_path):
    with pytest.raises(DataError, match="nothing is downloaded"):
        build("HuggingFaceTokenizer", tokenizer_model="gpt2")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        build("HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(DataError, match=r"tokenizer\.json: expected a tokenizer"):
        build("HuggingFaceTokenizer", tokenizer_model=str(tmp_path))


# ----- Null


def test_null_reads_numbers():
    tokenizer = build("NullTokenizer", vocab_size=1000)
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (1001, 1000, -1)
    assert tokenizer.tokenize(" 1 22  999 ") == [1, 22, 999]
    assert tokenizer.tokenize("") == []
    assert tokenizer.detokenize([3, 1000]) == "3 1000"
    assert tokenizer.identity() == {
        "class": "_NullTokenizer",
        "tokenizer_path": [None],
        "vocab_size": "1000",
    }


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1000), max_size=30))
def test_null_round_trip(ids):
    tokenizer = build("NullTokenizer", vocab_size=1000)
    assert tokenizer.tokenize(tokenizer.detokenize(ids)) == ids


@pytest.mark.parametrize("text", ["1 x", "1.5", "1001", "-1", "1,2"])
def test_null_refuses_what_is_no_id(text):
    with pytest.raises(DataError, match="NullTokenizer"):
        build("NullTokenizer", vocab_size=1000).tokenize(text)


# ----- choosing


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("GPT2BPETokenizer", "--vocab-file"),
        ("BertWordPieceCase", "--vocab-file"),
        ("Llama2Tokenizer", "--tokenizer-model"),
        ("TikTokenizer", "--tiktoken-pattern"),
        ("NullTokenizer", "--vocab-size"),
    ],
)
def test_a_missing_file_is_a_fault_of_the_configuration(kind, missing):
    with pytest.raises(ConfigError, match=missing):
        build(kind)


def test_building_a_tokenizer_imports_no_torch(tmp_path):
    import subprocess
    import sys

    files = train_bpe(tmp_path)
    program = (
        "import sys; from megacore.data.config import TokenizerConfig as C\n"
        "from megacore.data.tokenizers import build_tokenizer\n"
        f"t = build_tokenizer(C(vocab_file={files[0]!r}, merge_file={files[1]!r}))\n"
        "assert t.tokenize('a b')\n"
        "assert not {'torch', 'transformers', 'nltk'} & set(sys.modules), 'too much is imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

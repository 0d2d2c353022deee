"""Prepared text, byte by byte against datasets written out in the test."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_fixtures import UNICODE_TEXTS, assert_dataset, english, train_bpe, write_jsonl

from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.preprocess.config import PreprocessConfig, PreprocessTokenizerConfig
from megacore.data.preprocess.run import preprocess

TEXTS = [*english()[:25], *UNICODE_TEXTS, *english()[25:45]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return train_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def encode(files):
    """Ids by the tokenizers library, [] for no text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    engine = Tokenizer(models.BPE.from_file(*files))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return lambda text: engine.encode(text).ids


@pytest.fixture
def prepare(files, tmp_path):
    """Runs the preparation with the small vocabulary; returns the prefixes."""

    def run(*inputs: Path, **options: object) -> list[str]:
        options.setdefault("workers", 2)
        config = PreprocessConfig(
            input=tuple(map(str, inputs)), output_prefix=str(tmp_path / "out"), **options
        )
        tokenizer = PreprocessTokenizerConfig(
            tokenizer_type="GPT2BPETokenizer", vocab_file=files[0], merge_file=files[1]
        )
        return preprocess(config, tokenizer, stream=io.StringIO())

    return run


def single(encode, texts, eod: int | None = None) -> list[list[list[int]]]:
    """One sequence a document, none for a text without tokens."""
    documents = []
    for text in texts:
        ids = encode(text)
        documents.append([[*ids, *([] if eod is None else [eod])]] if ids else [])
    return documents


def jsonl(path: Path, texts) -> Path:
    return write_jsonl(path, [{"text": text} for text in texts])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("append_eod", [False, True])
def test_json_lines(prepare, encode, tmp_path, workers, append_eod):
    path = jsonl(tmp_path / "in.jsonl", TEXTS)
    (prefix,) = prepare(path, workers=workers, append_eod=append_eod)
    assert prefix == str(tmp_path / "out_text_document")
    assert_dataset(prefix, single(encode, TEXTS, 799 if append_eod else None))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.jsonl",
        "out_text_document.bin",
        "out_text_document.idx",
    ]


def test_many_chunks_keep_the_order(prepare, encode, tmp_path):
    texts = [f"{i} {TEXTS[i % len(TEXTS)][: 37 * i % 2000]}" for i in range(2000)]
    (prefix,) = prepare(jsonl(tmp_path / "in.jsonl", texts), workers=3, append_eod=True)
    assert_dataset(prefix, single(encode, texts, 799))


def test_several_keys_are_all_complete(prepare, encode, tmp_path):
    rows = [{"title": t[:20], "meta": {"n": 1}, "text": t, "end": t[-9:]} for t in TEXTS]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    prefixes = prepare(path, json_keys=("text", "title", "end", "text"), append_eod=True)
    assert [Path(p).name for p in prefixes] == [
        f"out_{k}_document" for k in ("text", "title", "end")
    ]
    for prefix, key in zip(prefixes, ("text", "title", "end"), strict=True):
        assert_dataset(prefix, single(encode, [row[key] for row in rows], 799))


@pytest.mark.parametrize("partitions", [2, 3, 7])
def test_partitions_deal_the_lines_out(prepare, encode, tmp_path, partitions):
    rows = [{"text": text, "b": text[::2]} for text in TEXTS]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    prefixes = prepare(path, partitions=partitions, append_eod=True, json_keys=("text", "b"))
    dealt = [row for part in range(partitions) for row in rows[part::partitions]]
    for prefix, key in zip(prefixes, ("text", "b"), strict=True):
        assert_dataset(prefix, single(encode, [row[key] for row in dealt], 799))
    assert len(list(tmp_path.iterdir())) == 5, "something was left behind"


def test_partitions_count_lines_over_all_files(prepare, encode, tmp_path):
    for name, texts in (("a", TEXTS[:10]), ("b", TEXTS[10:13]), ("c", TEXTS[13:])):
        jsonl(tmp_path / f"{name}.jsonl", texts)
    (prefix,) = prepare(tmp_path / "*.jsonl", partitions=4)
    dealt = [text for part in range(4) for text in TEXTS[part::4]]
    assert_dataset(prefix, single(encode, dealt))


def test_sequential_partitions_keep_the_order(prepare, encode, tmp_path):
    path = jsonl(tmp_path / "in.jsonl", TEXTS)
    (prefix,) = prepare(path, partitions=3, keep_sequential_samples=True, workers=3)
    assert_dataset(prefix, single(encode, TEXTS))


def test_parts_that_exist_are_read_instead(prepare, encode, tmp_path):
    jsonl(tmp_path / "in_0.jsonl", TEXTS[30:])
    jsonl(tmp_path / "in_1.jsonl", TEXTS[:30])
    path = jsonl(tmp_path / "in.jsonl", ["stale"])
    (prefix,) = prepare(path, partitions=2, keep_sequential_samples=True)
    assert_dataset(prefix, single(encode, TEXTS[30:] + TEXTS[:30]))


def test_a_dataset_named_like_a_part_is_left_alone(prepare, tmp_path):
    path = jsonl(tmp_path / "in.jsonl", TEXTS)
    for extension in ("bin", "idx"):
        (tmp_path / f"out_0_text_document.{extension}").write_bytes(b"mine")
        (tmp_path / f"out_0_text_document.part.{extension}").write_bytes(b"stale")
    prepare(path, partitions=2)
    left = sorted(p.name for p in tmp_path.glob("out*"))
    assert left == [
        *("out_0_text_document.bin", "out_0_text_document.idx"),
        *("out_text_document.bin", "out_text_document.idx"),
    ]
    assert (tmp_path / left[0]).read_bytes() == b"mine"


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("extension", "compress"),
    [
        (".gz", gzip.compress),
        (".zst", zstd),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
    ],
)
def test_compressed_files_of_several_members(prepare, encode, tmp_path, extension, compress):
    data = jsonl(tmp_path / "plain", TEXTS).read_bytes()
    cut = len(data) // 2  # in the middle of a line
    packed = tmp_path / f"in.jsonl{extension}"
    packed.write_bytes(compress(data[:cut]) + compress(data[cut:]))
    (prefix,) = prepare(packed)
    assert_dataset(prefix, single(encode, TEXTS))


@pytest.mark.parametrize("list_type", [False, True])
def test_parquet_columns(prepare, encode, tmp_path, list_type):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = TEXTS * 6
    column = [[text, "second"] for text in texts] if list_type else texts
    table = pyarrow.table({"id": list(range(len(texts))), "text": column})
    path = tmp_path / "in.parquet"
    parquet.write_table(table, path, row_group_size=50)
    (prefix,) = prepare(path)
    if list_type:
        pairs = [[encode(text), encode("second")] for text in texts]
        assert_dataset(prefix, [[ids for ids in pair if ids] for pair in pairs])
    else:
        assert_dataset(prefix, single(encode, texts))


def test_plain_text(prepare, encode, tmp_path):
    text = "First paragraph\nof two lines.\n\n  \t\n\nSecond \u00e9.\r\n\r\nThird.\n"
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    other = tmp_path / "two.txt"
    other.write_text("whole")
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n")
    (prefix,) = prepare(path, blank, other)
    assert_dataset(prefix, single(encode, [text, "whole"]))
    (prefix,) = prepare(path, blank, other, text_documents="paragraph")
    paragraphs = ["First paragraph\nof two lines.", "Second \u00e9.", "Third.", "whole"]
    assert_dataset(prefix, single(encode, paragraphs))
    (prefix,) = prepare(path, blank, other, text_documents="line")
    lines = ["First paragraph", "of two lines.", "Second \u00e9.", "Third.", "whole"]
    assert_dataset(prefix, single(encode, lines))


def test_paragraphs_over_many_chunks(prepare, encode, tmp_path):
    paragraphs = [f"{i}\n" + "word " * (997 * i % 3000) + "end" for i in range(120)]
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(paragraphs).encode()))
    (prefix,) = prepare(path, text_documents="paragraph", workers=3)
    assert_dataset(prefix, single(encode, paragraphs))


def test_lists_are_sentences_split_before(prepare, encode, tmp_path):
    rows = [{"text": ["One.", "", "Two three."]}, {"text": []}, {"text": [""]}, {"text": "Four."}]
    (prefix,) = prepare(write_jsonl(tmp_path / "in.jsonl", rows), append_eod=True)
    expected = [[encode("One."), [*encode("Two three."), 799]], [], [], [[*encode("Four."), 799]]]
    assert_dataset(prefix, expected)


def test_split_sentences(prepare, encode, tmp_path):
    texts = ["Dr. Smith went home. He was tired!  Why? \n", "No end", "", '"Quoted." he said. Yes.']
    path = jsonl(tmp_path / "in.jsonl", texts)
    (prefix,) = prepare(path, split_sentences=True, append_eod=True)
    assert prefix.endswith("out_text_sentence")
    split = [
        ["Dr. Smith went home.", "He was tired!", "Why?"],
        ["No end"],
        [],
        ['"Quoted."', "he said.", "Yes."],
    ]
    expected = [[encode(one) for one in document] for document in split]
    for document in expected:
        if document:
            document[-1].append(799)
    assert_dataset(prefix, expected)
    (prefix,) = prepare(path, split_sentences=True, keep_newlines=True)
    split[0] = ["Dr. Smith went home. ", "He was tired!  ", "Why?"]
    split[3] = ['"Quoted." ', "he said. ", "Yes."]
    assert_dataset(prefix, [[encode(one) for one in document] for document in split])


def test_line_ends_blank_lines_and_a_missing_newline(prepare, encode, tmp_path):
    lines = [json.dumps({"text": text}) for text in TEXTS[:5]]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ("\r\n\r\n".join(lines[:3])).encode() + b"\n \n\n")
    with path.open("a") as file:
        file.write("\n".join(lines[3:]))
    (prefix,) = prepare(path)
    assert_dataset(prefix, single(encode, TEXTS[:5]))


def test_a_line_longer_than_any_chunk(prepare, encode, tmp_path):
    texts = ["short", "long words and more " * 60_000, "a" * 100_000, "after"]
    (prefix,) = prepare(jsonl(tmp_path / "in.jsonl", texts), append_eod=True)
    assert_dataset(prefix, single(encode, texts, 799))


def test_json_that_only_python_reads(prepare, encode, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "ok", "score": NaN, "other": "\\ud800"}\n')
    (prefix,) = prepare(path)
    assert_dataset(prefix, single(encode, ["ok"]))


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=60), min_size=1, max_size=8
    ),
    st.integers(1, 4),
)
def test_any_text_comes_back(prepare, files, tmp_path, texts, partitions):
    from megacore.data.tokenizers.gpt2_bpe import GPT2BPETokenizer

    path = jsonl(tmp_path / "in.jsonl", texts)
    (prefix,) = prepare(path, workers=1, partitions=partitions)
    dataset = IndexedDataset(prefix)
    tokenizer = GPT2BPETokenizer(*files)
    found = [
        "".join(tokenizer.detokenize(part.tolist()) for part in dataset.document(i))
        for i in range(dataset.num_documents)
    ]
    assert found == [text for part in range(partitions) for text in texts[part::partitions]]


def test_null_tokenizer_with_wide_ids(tmp_path):
    path = jsonl(tmp_path / "in.jsonl", ["5 70000", "", "0"])
    config = PreprocessConfig(
        input=(str(path),), output_prefix=str(tmp_path / "out"), append_eod=True, workers=1
    )
    tokenizer = PreprocessTokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=70001)
    (prefix,) = preprocess(config, tokenizer, stream=io.StringIO())
    assert_dataset(prefix, [[[5, 70000, 70001]], [], [[0, 70001]]], "int32")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65498, "uint16"), (65499, "int32")])
def test_item_type_follows_the_vocabulary(tmp_path, vocab_size, dtype):
    path = jsonl(tmp_path / "in.jsonl", ["1 2"])
    config = PreprocessConfig(input=(str(path),), output_prefix=str(tmp_path / "out"), workers=1)
    tokenizer = PreprocessTokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=vocab_size)
    (prefix,) = preprocess(config, tokenizer, stream=io.StringIO())
    assert_dataset(prefix, [[[1, 2]]], dtype)


def test_llama2_documents_begin_with_bos(tmp_path):
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(english()[:20]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "small"),
        vocab_size=400,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "small.model"))
    texts = ["the list", "", "of names"]
    config = PreprocessConfig(
        input=(str(jsonl(tmp_path / "in.jsonl", texts)),),
        output_prefix=str(tmp_path / "out"),
        append_eod=True,
    )
    tokenizer = PreprocessTokenizerConfig(
        tokenizer_type="Llama2Tokenizer", tokenizer_model=str(tmp_path / "small.model")
    )
    (prefix,) = preprocess(config, tokenizer, stream=io.StringIO())
    assert_dataset(prefix, [[[1, *model.encode(text), 2]] for text in texts])

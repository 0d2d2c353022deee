"""Merging, inspecting, and learning a vocabulary."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_fixtures import REPOSITORY, assert_dataset, english, train_bpe, write_jsonl

from megacore import cli
from megacore.data.config import TokenizerConfig
from megacore.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megacore.data.inspect import summarize
from megacore.data.preprocess.merge import MergeConfig, merge
from megacore.data.tokenizers import build_tokenizer
from megacore.errors import DataError


def write(prefix: Path, documents, dtype: str = "uint16", modes=None) -> None:
    with IndexedDatasetWriter(str(prefix), dtype, multimodal=modes is not None) as writer:
        for i, document in enumerate(documents):
            tokens = [token for sequence in document for token in sequence]
            lengths = [len(sequence) for sequence in document]
            if modes is None:
                writer.add_document(tokens, lengths)
            else:
                writer.add_document(tokens, lengths, modes=modes[i])


# ----- merging

A = [[[1, 2, 3]], [], [[4], [5, 6]]]
B = [[[7]]]
C = [[[8, 9]], [[10]]]


def test_merge_by_name(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, documents in (("b", B), ("c_10", C), ("a", A)):
        write(folder / name, documents)
    (folder / "readme.txt").write_text("not a dataset")
    program = [sys.executable, str(REPOSITORY / "tools" / "merge_datasets.py")]
    out = tmp_path / "all"
    done = subprocess.run(
        [*program, "--input", str(folder), "--output-prefix", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_dataset(out, [*A, *B, *C])


def test_merge_with_modes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a", [[[1], [2, 3]]], "int32", modes=[[0, 1]])
    write(folder / "b", [[[4]], [[5]]], "int32", modes=[[1], [0]])
    config = MergeConfig(input=str(folder), output_prefix=str(tmp_path / "out"), multimodal=True)
    assert [Path(p).name for p in merge(config)] == ["a", "b"]
    merged = IndexedDataset(str(tmp_path / "out"), multimodal=True)
    assert merged.sequence_modes.tolist() == [0, 1, 1, 0]
    assert merged.document_indices.tolist() == [0, 2, 3, 4]


def test_merge_refuses(tmp_path):
    folder = tmp_path / "in"
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="cannot list"):
        merge(MergeConfig(input=str(folder), output_prefix=out))
    folder.mkdir()
    with pytest.raises(DataError, match=r"there is no \.bin/\.idx pair"):
        merge(MergeConfig(input=str(folder), output_prefix=out))
    write(folder / "a", A)
    write(folder / "b", B, "int32")
    with pytest.raises(DataError, match=r"b\.idx: expected items of type uint16 .*a\.idx.*int32"):
        merge(MergeConfig(input=str(folder), output_prefix=out))
    (folder / "b.bin").unlink()
    with pytest.raises(DataError, match=r"b\.bin is missing, but b\.idx is there"):
        merge(MergeConfig(input=str(folder), output_prefix=out))
    (folder / "b.idx").unlink()
    with pytest.raises(DataError, match="the output is one of the inputs"):
        merge(MergeConfig(input=str(folder), output_prefix=str(folder / "a")))
    index = (folder / "a.idx").read_bytes()
    (folder / "a.idx").write_bytes(index[:-3])
    with pytest.raises(DataError, match=r"a\.idx"):
        merge(MergeConfig(input=str(folder), output_prefix=out))
    assert [p.name for p in tmp_path.iterdir()] == ["in"], "nothing half-written"
    assert cli.main(["merge"]) == 2


# ----- inspecting


def test_summary(tmp_path):
    write(tmp_path / "d", [*A, [[1] * 100]])
    found = summarize(str(tmp_path / "d"))
    assert (found.sequences, found.documents, found.empty_documents) == (4, 4, 1)
    assert (found.tokens, found.dtype) == (106, "uint16")
    assert (found.shortest, found.longest, found.mean) == (1, 100, 26.5)
    assert (found.lowest_id, found.highest_id) == (1, 6)
    occupied = [row for row in found.histogram if row[2]]
    assert occupied == [(1, 1, 1), (2, 3, 2), (64, 127, 1)]
    assert found.bytes_on_disk == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_summary_of_nothing(tmp_path):
    write(tmp_path / "d", [[], []])
    found = summarize(str(tmp_path / "d"))
    assert (found.sequences, found.documents, found.empty_documents) == (0, 2, 2)
    assert found.histogram == ()
    assert found.lowest_id is None
    assert cli.main(["data", "info", str(tmp_path / "d")]) == 0


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7, 8, 1023, 1024])
def test_histogram_bins_hold_what_they_say(tmp_path, length):
    write(tmp_path / "d", [[[1] * length]])
    occupied = [row for row in summarize(str(tmp_path / "d")).histogram if row[2]]
    assert len(occupied) == 1
    first, last, count = occupied[0]
    assert first <= length <= last
    assert count == 1


def test_info_and_show(tmp_path, capsys):
    files = train_bpe(tmp_path / "bpe")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_file=files[0], merge_file=files[1]))
    texts = ["first one", "second \u00e9"]
    write(tmp_path / "d", [[tokenizer.tokenize(text)] for text in texts])
    assert cli.main(["data", "info", str(tmp_path / "d.bin")]) == 0
    shown = capsys.readouterr().out
    assert "documents   2" in shown
    assert "damage      none found" in shown
    bpe = ["--vocab-file", files[0], "--merge-file", files[1]]
    assert cli.main(["data", "show", str(tmp_path / "d"), "--index", "-1", *bpe]) == 0
    shown = capsys.readouterr().out
    assert "sequence 1, document 1:" in shown
    assert " ".join(map(str, tokenizer.tokenize(texts[1]))) in shown
    assert repr(texts[1]) in shown
    assert cli.main(["data", "show", str(tmp_path / "d"), "--count", "9", "--max-tokens", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("(the first 1)") == 2
    assert "text:" not in shown
    assert cli.main(["data", "show", str(tmp_path / "d"), "--index", "2"]) == 1
    assert "there is no sequence 2; it has 2" in capsys.readouterr().err
    assert cli.main(["data", "info"]) == 2
    assert cli.main(["data", "inf"]) == 2
    assert cli.main(["data", "--help"]) == 0


def test_damage_is_found(tmp_path, capsys):
    write(tmp_path / "d", A)
    data = (tmp_path / "d.bin").read_bytes()
    (tmp_path / "d.bin").write_bytes(data[:-2])
    assert cli.main(["data", "info", str(tmp_path / "d")]) == 1
    assert "d.bin" in capsys.readouterr().err


# ----- learning a vocabulary


def learn(tmp_path: Path, *words: str) -> int:
    return cli.main(["data", "train-tokenizer", "--output", str(tmp_path / "out"), *words])


def test_bpe_in_the_format_of_gpt2(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(english()[:20]), encoding="utf-8")
    rows = [{"text": text} for text in english()[20:40]]
    plain = write_jsonl(tmp_path / "plain", rows).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    inputs = ["--input", str(tmp_path / "a.txt"), str(tmp_path / "*.gz"), "--vocab-size", "700"]
    assert learn(tmp_path, *inputs) == 0
    assert "learned 700 tokens" in capsys.readouterr().out
    vocab_file, merge_file = tmp_path / "out" / "vocab.json", tmp_path / "out" / "merges.txt"
    vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
    assert list(vocab.values()) == list(range(700))
    assert [*vocab][:3] == ["!", '"', "#"], "the order of GPT-2's bytes"
    assert vocab["<|endoftext|>"] == 699
    lines = merge_file.read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("#version")
    assert lines[-1] == ""
    assert [line.replace(" ", "") for line in lines[1:-1]] == [*vocab][256:699]
    tokenizer = build_tokenizer(
        TokenizerConfig(vocab_file=str(vocab_file), merge_file=str(merge_file))
    )
    assert tokenizer.backend == "tiktoken"
    for text in english()[40:45]:
        ids = tokenizer.tokenize(text)
        assert tokenizer.detokenize(ids) == text
        assert len(ids) < 0.6 * len(text)
    first = vocab_file.read_bytes(), merge_file.read_bytes()
    assert learn(tmp_path, *inputs) == 0
    assert (vocab_file.read_bytes(), merge_file.read_bytes()) == first, "learning is repeatable"


@pytest.mark.parametrize("cased", [False, True])
def test_word_piece(tmp_path, cased):
    path = write_jsonl(tmp_path / "in.jsonl", [{"body": text} for text in english()[:20]])
    words = ["--input", str(path), "--json-keys", "body", "--kind", "wordpiece"]
    assert learn(tmp_path, *words, "--vocab-size", "500", *(["--cased"] if cased else [])) == 0
    vocab_file = tmp_path / "out" / "vocab.txt"
    lines = vocab_file.read_text(encoding="utf-8").split("\n")
    assert lines[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(lines) == 501
    assert any(line != line.lower() for line in lines[5:]) == cased
    kind = "BertWordPieceCase" if cased else "BertWordPieceLowerCase"
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type=kind, vocab_file=str(vocab_file)))
    unknown = np.mean(np.array(tokenizer.tokenize(english()[30])) == 1)
    assert unknown < 0.01


def test_learning_refuses(tmp_path, capsys):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "a b"}, {"text": 5}])
    for words, code, message in [
        (["--input", str(path)], 1, "line 2: key 'text': expected a string"),
        (["--input", str(tmp_path / "no")], 1, "no such input file"),
        (["--input", str(path), "--vocab-size", "256"], 1, "at least 257"),
        ([], 2, "--input"),
        (["--input", str(path), "--kind", "unigram"], 2, "wordpiece"),
    ]:
        assert learn(tmp_path, *words) == code
        assert message in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert learn(tmp_path, "--input", str(tmp_path / "empty.txt")) == 1
    assert "no text to learn from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Readers of the finetuning tasks, and the rows that an encoder sees."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from megacore.errors import DataError
from megacore.evaluation.examples import Example, read_mnli, read_qqp, read_race
from megacore.evaluation.pairs import SpecialTokens, clean, write_pair
from megacore.evaluation.samples import TaskSamples, samples_per_epoch

MNLI_HEAD = "\t".join(f"c{i}" for i in range(12))
QQP_HEAD = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"


def mnli_row(index, label, premise="One thing .", hypothesis="Another\u2003thing"):
    return "\t".join([str(index), *["x"] * 7, premise, hypothesis, label, label])


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_mnli(tmp_path):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    rows = [mnli_row(7, "neutral"), mnli_row(8, "entailment"), mnli_row(9, "contradiction")]
    file = read_mnli(write(folder / "dev_matched.tsv", MNLI_HEAD, *rows))
    assert file.name == "dev-matched"
    assert [(e.uid, e.label) for e in file.examples] == [(7, 2), (8, 1), (9, 0)]
    assert file.examples[0].firsts == ("One thing .",)
    assert file.examples[0].second == "Another thing"
    ten = "\t".join(f"c{i}" for i in range(10))
    row = "\t".join(["3", *["x"] * 7, "a b", "c d"])
    assert read_mnli(write(folder / "test.tsv", ten, row)).examples[0].label == -1


def test_qqp(tmp_path):
    file = read_qqp(write(tmp_path / "train.tsv", QQP_HEAD, "5\t1\t2\tWhy?\tHow?\t1"))
    assert file.examples == [Example(("Why?",), "How?", 1, 5)]
    file = read_qqp(write(tmp_path / "test.tsv", "id\tq1\tq2", "6\tWhy?\tHow?"))
    assert file.examples == [Example(("Why?",), "How?", -1, 6)]


@pytest.mark.parametrize(
    ("reader", "lines", "said"),
    [
        (read_mnli, ["a\tb\tc"], "line 1: expected at least 10 columns for MNLI, found 3"),
        (read_mnli, [MNLI_HEAD], "no examples"),
        (read_mnli, [MNLI_HEAD, mnli_row(1, "maybe")], "line 2: the label must be one of"),
        (read_mnli, [MNLI_HEAD, "1\t2"], "line 2: expected 12 columns as in line 1, found 2"),
        (read_mnli, [MNLI_HEAD, mnli_row(1, "neutral", premise=" ")], "line 2: a text is empty"),
        (read_qqp, [QQP_HEAD, "1\t2\t3\ta\tb\t2"], "line 2: the label must be one of 0, 1"),
        (read_qqp, ["a\tb"], "line 1: expected at least 6 columns for QQP, found 2"),
        (read_qqp, [""], "empty"),
    ],
)
def test_broken_tables_name_their_line(tmp_path, reader, lines, said):
    path = write(tmp_path / "table.tsv", *lines)
    with pytest.raises(DataError, match=said) as error:
        reader(path)
    assert str(error.value).startswith(path)


def test_a_few_broken_rows_are_left_out_and_said(tmp_path):
    rows = [f"{i}\t1\t2\tWhy {i}?\tHow?\t{i % 2}" for i in range(200)]
    rows[40] = "40\tbroken"
    file = read_qqp(write(tmp_path / "train.tsv", QQP_HEAD, *rows))
    assert len(file.examples) == 199
    (remark,) = file.remarks
    assert "line 42: expected 6 columns" in remark
    assert "left out 1 of 200 rows" in remark
    rows[41:44] = ["x"] * 3
    with pytest.raises(DataError, match=r"line 42: .* \(and 3 more lines\)"):
        read_qqp(write(tmp_path / "train.tsv", QQP_HEAD, *rows))


def race_record(**changes):
    record = {
        "article": "The cat\nsat . It slept.",
        "questions": ["The _ sat.", "What did it do?"],
        "options": [["dog", "cat", "cow", "hen"], ["slept", "ran", "ate", "sang"]],
        "answers": ["B", "A"],
    }
    return json.dumps(record | changes)


def test_race(tmp_path):
    folder = tmp_path / "RACE" / "dev" / "high"
    folder.mkdir(parents=True)
    write(folder / "2.txt", race_record())
    write(folder / "1.txt", race_record(answers=["C", "D"]), "", race_record())
    file = read_race(f"{folder}/")
    assert file.name == "dev-high"
    assert [e.label for e in file.examples] == [2, 3, 1, 0, 1, 0]
    assert file.examples[0].firsts[1] == "The cat sat."
    assert file.examples[1].firsts[0] == "What did it do? slept"
    assert file.examples[0].second == "The cat sat. It slept."


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON"),
        (race_record(article=3), "line 1: expected 'article'"),
        (race_record(answers=["A"]), "line 1: 2 questions, 2 options, 1 answers"),
        (race_record(answers=["A", "E"]), "line 1, question 2: the answer must be one of ABCD"),
        (race_record(options=[["a"] * 4, ["a"] * 3]), "line 1, question 2: expected 4 options"),
    ],
)
def test_broken_articles_name_their_line(tmp_path, line, said):
    path = write(tmp_path / "1.txt", line)
    with pytest.raises(DataError, match=said):
        read_race(path)


def test_folder_without_articles(tmp_path):
    with pytest.raises(DataError, match=r"a folder without \.txt files"):
        read_race(str(tmp_path))


def test_clean():
    assert clean("a\nb  \t c . . . . d .") == "a b c. ... d ."


def row(first, second, length, pad=0):
    tokens, types = np.full(length, 99), np.full(length, 99)
    used = write_pair(first, second, SpecialTokens(1, 2, pad), tokens=tokens, types=types)
    return tokens.tolist(), types.tolist(), used


def test_pairs():
    assert row([5, 6], [7], 8) == ([1, 5, 6, 2, 7, 2, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0], 6)
    # Padding of another id is not a type.
    assert row([5], [7], 7, pad=3) == ([1, 5, 2, 7, 2, 3, 3], [0, 0, 0, 1, 1, 0, 0], 5)
    # Exactly full, then cut: the last token is always [SEP].
    assert row([5, 6], [7], 6) == ([1, 5, 6, 2, 7, 2], [0, 0, 0, 0, 1, 1], 6)
    assert row([5, 6], [7, 8], 6) == ([1, 5, 6, 2, 7, 2], [0, 0, 0, 0, 1, 1], 6)
    assert row([5, 6, 7, 8], [9], 5) == ([1, 5, 6, 7, 2], [0, 0, 0, 0, 1], 5)


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize(("count", "batch"), [(10, 4), (8, 4), (3, 2), (5, 1)])
def test_epochs_have_every_example_once(count, batch, keep_last):
    examples = [Example(("a",), "b", 0, i) for i in range(count)]
    per_epoch = samples_per_epoch(count, batch, keep_last=keep_last)
    assert per_epoch % batch == 0
    samples = TaskSamples(
        examples,
        name="x",
        num_samples=3 * per_epoch,
        batch_size=batch,
        seed=5,
        keep_last=keep_last,
    )
    orders = []
    for epoch in range(3):
        met = [samples.example(epoch * per_epoch + i) for i in range(per_epoch)]
        there = [e.uid for e in met if e is not None]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(5 + epoch))
        assert there == order.tolist()[: len(there)]
        assert len(there) == (count if keep_last else count // batch * batch)
        orders.append(there)
    assert orders[0] != orders[1]

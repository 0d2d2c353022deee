"""Files made from a text are read back by the readers of the tasks, and follow their rules."""

from __future__ import annotations

import json
import re

import pytest
from task_fixtures import english

from megacore import cli
from megacore.evaluation.detokenize import wiki
from megacore.evaluation.examples import read_mnli, read_qqp, read_race
from megacore.evaluation.make_task.command import MAKERS
from megacore.evaluation.make_task.language_modelling import tokenised
from megacore.evaluation.make_task.pairs import first_clause, negated


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(english()[:150_000], encoding="utf-8")
    return path


def make(name, source, output, *more):
    words = ["data", "make-task", name, "--from", str(source), "--output", str(output), *more]
    return cli.run(cli.dispatch, words)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """A folder with all tasks."""
    output = tmp_path_factory.mktemp("made")
    for name in MAKERS:
        assert make(name, source, output, "--examples", "90") == 0
    return output


def test_same_seed_same_files_other_seed_other_files(made, source, tmp_path):
    for name, seed in (("again", "1234"), ("other", "1235")):
        assert make("RACE", source, tmp_path / name, "--examples", "90", "--seed", seed) == 0

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.txt")}

    first, again, other = (
        content(folder) for folder in (made, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


def test_lambada_targets_occur_before(made):
    lines = (made / "LAMBADA" / "lambada_test.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        *context, last = json.loads(line)["text"].split()
        target = last.strip("\"'(*")
        assert len(target) >= 4
        assert re.search(rf"\b{re.escape(target)}\b", " ".join(context))


def test_race_answers_are_the_words_left_out(made):
    for part in ("train/middle", "dev/high"):
        file = read_race(str(made / "RACE" / part))
        assert file.name == part.replace("/", "-")
        labels = set()
        for example in file.examples:
            right = example.firsts[example.label]
            assert right in example.second
            for number, other in enumerate(example.firsts):
                assert (other in example.second) == (number == example.label)
            labels.add(example.label)
        assert len(labels) == 4


def test_mnli_has_a_third_of_each_label_and_its_rules(made):
    train = read_mnli(str(made / "MNLI" / "train.tsv")).examples
    assert [sum(e.label == label for e in train) for label in range(3)] == [30, 30, 30]
    for example in train:
        (premise,), hypothesis = example.firsts, example.second
        if example.label == 1:
            assert premise.startswith(hypothesis)
        if example.label == 0:
            assert " not " in f"{hypothesis} "
    for name, width in (("train", 12), ("dev_matched", 16), ("test_matched", 10)):
        rows = (made / "MNLI" / f"{name}.tsv").read_text().splitlines()
        assert {len(row.split("\t")) for row in rows} == {width}
    assert {e.label for e in read_mnli(str(made / "MNLI" / "test_matched.tsv")).examples} == {-1}


def test_qqp_is_half_duplicates(made):
    train = read_qqp(str(made / "QQP" / "train.tsv")).examples
    assert [sum(e.label == label for e in train) for label in range(2)] == [45, 45]
    assert {e.label for e in read_qqp(str(made / "QQP" / "test.tsv")).examples} == {-1}


def test_no_sentence_is_trained_on_and_measured(made):
    train, dev = (
        {e.firsts[0] for e in read_mnli(str(made / "MNLI" / f"{name}.tsv")).examples}
        for name in ("train", "dev_matched")
    )
    assert len(train & dev) <= 0.1 * len(dev)


def test_questions_are_answered_by_the_evidence(made):
    rows = (made / "NQ" / "psgs.tsv").read_text().splitlines()
    assert rows[0] == "id\ttext\ttitle"
    texts = [row.split("\t")[1] for row in rows[1:]]
    for line in (made / "NQ" / "nq-test.csv").read_text().splitlines():
        question, answers = line.split("\t")
        (answer,) = json.loads(answers.replace("'", '"'))
        rest = re.split(r"\bwhat\b", question, maxsplit=1)[1].strip(" .")
        assert any(answer in text and rest in text for text in texts)


@pytest.mark.parametrize(
    "text",
    [
        "A well-known list of 1,000 words, or 2.5 more; see below.",
        "He asked: why (and how)? It was the dog's bone!",
    ],
)
def test_detokeniser_undoes_the_tokenisation(text):
    spaced = tokenised(text)
    assert spaced != text
    assert wiki(spaced + " \n").rstrip("\n") == text


def test_clauses():
    assert first_clause("When it rains in May, the grass grows.") == "When it rains in May"
    assert first_clause("The old man walked to the sea today.") == "The old man walked"
    assert negated("The list is long") == "The list is not long"
    assert negated("The man walked") == "It is not true that the man walked"


def test_too_little_text_and_missing_flags_are_said(tmp_path, capsys):
    path = tmp_path / "short.txt"
    path.write_text("One short line of text is here. And another one is there.\n")
    assert make("MNLI", path, tmp_path) == 1
    assert "paragraphs of two sentences" in capsys.readouterr().err
    assert cli.run(cli.dispatch, ["data", "make-task", "SQUAD"]) == 2
    err = capsys.readouterr().err
    assert "MC0004" in err
    assert "--from" in err
    assert "--output" in err

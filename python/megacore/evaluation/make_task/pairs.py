"""MNLI and QQP: pairs of sentences that follow from, contradict or repeat each other, or do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from megacore.evaluation.make_task.corpus import Corpus

_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|may|might|must|shall|should|has|have|had|does|do)\b"
)
_CLAUSE_END = re.compile(r"[,;:]")
_MIN_CLAUSE = 4
_MNLI_COLUMNS = (
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
)
# Name of the file, part of the text, how many people labelled a pair.
_MNLI_FILES = (
    ("train.tsv", "train", 1),
    ("dev_matched.tsv", "dev", 5),
    ("dev_mismatched.tsv", "test", 5),
    ("test_matched.tsv", "test", 0),
)
_QQP_FILES = (("train.tsv", "train", True), ("dev.tsv", "dev", True), ("test.tsv", "test", False))
_SAME = ("Is it true that", "Can one say that", "Is it right that")
_OPPOSITE = "Is it false that"


def mnli(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Premise and hypothesis: entailed is the first clause of the premise, contradicted is that
    clause negated, neutral is the first clause of a sentence from elsewhere.

    Args:
        corpus: Where the text comes from.
        random: Chooses.
        examples: Most pairs of a file, a third of each kind.

    Yields:
        Name and content of each file, with the columns of GLUE.
    """
    for name, part, labellers in _MNLI_FILES:
        labels = [f"label{i + 1}" for i in range(labellers)]
        head = [*_MNLI_COLUMNS, *labels, *(["gold_label"] if labellers else [])]
        lines = ["\t".join(head)]
        for index, (premise, hypothesis, label) in enumerate(
            _entailments(corpus.part(part), random, examples)
        ):
            row = [str(index), str(index // 3), f"{index}{label[0]}", "text", "-", "-", "-", "-"]
            lines.append("\t".join([*row, premise, hypothesis, *[label] * (len(head) - 10)]))
        yield name, "\n".join(lines) + "\n"


def _entailments(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str, str]]:
    sentences = _plain_sentences(corpus)
    random.shuffle(sentences)
    pairs: list[tuple[str, str, str]] = []
    for number, sentence in enumerate(sentences[: examples // 3]):
        clause = first_clause(sentence)
        # Half of the sentences away: not from the same passage but by chance.
        other = sentences[(number + len(sentences) // 2) % len(sentences)]
        pairs.append((sentence, clause, "entailment"))
        pairs.append((sentence, negated(clause), "contradiction"))
        pairs.append((sentence, first_clause(other), "neutral"))
    random.shuffle(pairs)
    yield from pairs


def qqp(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Pairs of questions about what a sentence says: duplicates ask the same in other words,
    others ask the opposite, or about another sentence.

    Args:
        corpus: Where the text comes from.
        random: Chooses.
        examples: Most pairs of a file, half of them duplicates.

    Yields:
        Name and content of each file, with the columns of GLUE.
    """
    for name, part, has_label in _QQP_FILES:
        head = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
        lines = ["\t".join(head if has_label else ("id", "question1", "question2"))]
        pairs = list(_question_pairs(corpus.part(part), random, examples))
        for index, (first, second, label) in enumerate(pairs):
            if has_label:
                row = [str(index), str(2 * index), str(2 * index + 1), first, second, str(label)]
            else:
                row = [str(index), first, second]
            lines.append("\t".join(row))
        yield name, "\n".join(lines) + "\n"


def _question_pairs(
    corpus: Corpus, random: Random, examples: int
) -> Iterator[tuple[str, str, int]]:
    sentences = _plain_sentences(corpus)
    random.shuffle(sentences)
    pairs = []
    for number, sentence in enumerate(sentences[: examples // 2]):
        first, second = random.sample(_SAME, 2)
        clause = _lower(first_clause(sentence))
        other = _lower(first_clause(sentences[(number + 1) % len(sentences)]))
        different = f"{_OPPOSITE} {clause}?" if number % 2 else f"{second} {other}?"
        pairs.append((f"{first} {clause}?", f"{second} {clause}?", 1))
        pairs.append((f"{first} {clause}?", different, 0))
    random.shuffle(pairs)
    yield from pairs


def _plain_sentences(corpus: Corpus) -> list[str]:
    found: Sequence[str] = [s for p in corpus.passages for s in p.sentences]
    return [s.replace("\t", " ") for s in found if '"' not in s]


def first_clause(sentence: str) -> str:
    """The words before the first comma or semicolon, or the first half; without a full stop."""
    clause = _CLAUSE_END.split(sentence, maxsplit=1)[0]
    parts = clause.rstrip(".!?").split(" ")
    if len(parts) < _MIN_CLAUSE or clause == sentence:
        parts = sentence.rstrip(".!?").split(" ")
        parts = parts[: max(_MIN_CLAUSE, (len(parts) + 1) // 2)]
    return " ".join(parts).rstrip(",;:")


def negated(clause: str) -> str:
    """A clause with "not" behind its first auxiliary verb, or said to be untrue."""
    if _AUXILIARY.search(clause):
        return _AUXILIARY.sub(r"\1 not", clause, count=1)
    return f"It is not true that {_lower(clause)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]

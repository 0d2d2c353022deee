"""RACE and open-domain questions: texts with a word left out, and what it might be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from random import Random

from megacore.evaluation.make_task.corpus import Corpus, Passage, words

_LETTERS = "ABCD"
_QUESTIONS_PER_ARTICLE = 3
_ARTICLES_PER_FILE = 50
_LEVELS = {"middle": 0, "high": 1}
_GAP = "_"


def race(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Folders `train`, `dev` and `test` of `middle` and `high`, as RACE is divided.

    A question is a sentence of the article with one word left out. The wrong options are words
    that the article does not have and that are rarer in the whole text than the right one.

    Args:
        corpus: Where the text comes from.
        random: Chooses.
        examples: Most questions of a folder.

    Yields:
        Name and content of each file.
    """
    for part in ("train", "dev", "test"):
        passages = corpus.part(part).passages
        for level, residue in _LEVELS.items():
            lines: list[str] = []
            questions = 0
            # Longer passages are for the higher level.
            ordered = sorted(passages, key=lambda passage: len(passage.text))
            half = len(ordered) // 2
            chosen = ordered[:half] if residue == 0 else ordered[half:]
            random.shuffle(chosen)
            for passage in chosen:
                record = _article(passage, corpus, random, f"{level}{len(lines)}.txt")
                if record is not None and questions < examples:
                    lines.append(json.dumps(record))
                    questions += len(record["questions"])
            # Without any questions there is still a file, which is empty.
            for first in range(0, max(len(lines), 1), _ARTICLES_PER_FILE):
                content = "".join(f"{line}\n" for line in lines[first : first + _ARTICLES_PER_FILE])
                yield f"{part}/{level}/{first // _ARTICLES_PER_FILE}.txt", content


def _article(
    passage: Passage, corpus: Corpus, random: Random, name: str
) -> dict[str, Sequence[object]] | None:
    gaps = _gaps(passage, corpus, random)[:_QUESTIONS_PER_ARTICLE]
    if not gaps:
        return None
    questions, options, answers = [], [], []
    for question, answer, wrong in gaps:
        choices = [answer, *wrong]
        random.shuffle(choices)
        questions.append(question)
        options.append(choices)
        answers.append(_LETTERS[choices.index(answer)])
    return {
        "answers": answers,
        "options": options,
        "questions": questions,
        "article": passage.text,
        "id": name,
    }


def _gaps(passage: Passage, corpus: Corpus, random: Random) -> list[tuple[str, str, list[str]]]:
    """A question, its answer and three wrong ones, for each sentence that has them."""
    inside = {word.lower() for word in words(passage.text)}
    found = []
    for sentence in passage.sentences:
        if _GAP in sentence:
            continue
        answers = [w for w in words(sentence) if w.islower() and corpus.word_counts[w] > 1]
        if not answers:
            continue
        answer = max(answers, key=lambda word: (corpus.word_counts[word], word))
        count = corpus.word_counts[answer]
        wrong = _rarer_words(corpus, random, count, inside)
        if len(wrong) == len(_LETTERS) - 1:
            found.append((_without(sentence, answer, _GAP), answer, wrong))
    return found


def _rarer_words(corpus: Corpus, random: Random, count: int, inside: set[str]) -> list[str]:
    vocabulary = list(corpus.word_counts)
    chosen: list[str] = []
    for _ in range(20 * len(_LETTERS)):
        word = random.choice(vocabulary)
        if corpus.word_counts[word] < count and word not in inside and word not in chosen:
            chosen.append(word)
        if len(chosen) == len(_LETTERS) - 1:
            break
    return chosen


def natural_questions(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Evidence and questions for a retriever: psgs.tsv, nq-dev.csv and nq-test.csv.

    The evidence has a line of names (id, text, title) and every passage. A question has the words
    of one of its sentences but the answer, which is a rare word of that passage.

    Args:
        corpus: Where the text comes from.
        random: Chooses.
        examples: Most questions of a file.

    Yields:
        Name and content of each file.
    """
    rows = ["id\ttext\ttitle\n"]
    for number, passage in enumerate(corpus.passages, 1):
        title = " ".join(words(passage.sentences[0])[:3]).title()
        rows.append(f"{number}\t{_cell(passage.text)}\t{_cell(title)}\n")
    yield "psgs.tsv", "".join(rows)
    for name, part in (("nq-dev.csv", "dev"), ("nq-test.csv", "test")):
        asked = [q for passage in corpus.part(part).passages for q in _asked(passage, corpus)]
        chosen = random.sample(asked, min(examples, len(asked)))
        yield name, "".join(f"{question}\t{[answer]!r}\n" for question, answer in chosen)


def _asked(passage: Passage, corpus: Corpus) -> Iterator[tuple[str, str]]:
    sentence = _cell(passage.sentences[0])
    answers = [word for word in words(sentence) if word.islower()]
    if answers:
        answer = min(answers, key=lambda word: (corpus.word_counts[word], word))
        gone = _without(sentence, answer, "what").rstrip(".!?")
        yield gone[0].lower() + gone[1:], answer


def _without(sentence: str, word: str, gap: str) -> str:
    """A sentence with something else in place of the first occurrence of a whole word."""
    return re.sub(rf"\b{re.escape(word)}\b", gap, sentence, count=1)


def _cell(text: str) -> str:
    return text.replace("\t", " ").replace('"', "'")

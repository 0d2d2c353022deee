"""Evidence and questions: what is searched, and what for."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megacore.errors import DataError
from megacore.evaluation.files import read_lines


@dataclass(frozen=True)
class Evidence:
    """One passage.

    Attributes:
        number: Its id.
        text: What it says.
        title: Of what it is a part.
    """

    number: int
    text: str
    title: str


@dataclass(frozen=True)
class Question:
    """A question, and the answers of which one must be found.

    Attributes:
        text: Without a question mark at the end.
        answers: At least one.
    """

    text: str
    answers: Sequence[str]


def read_evidence(path: str) -> list[Evidence]:
    """Passages of a table with a line of names and the columns id, text and title.

    Raises:
        DataError: The file cannot be read, a row is not like that, or an id comes twice.
    """
    passages = []
    seen: set[int] = set()
    for number, line in read_lines(Path(path)):
        cells = line.split("\t")
        if number == 1 and cells[0] == "id":
            continue
        place = f"{path}, line {number}"
        if len(cells) != 3 or not cells[0].strip().isdecimal():
            raise DataError(
                f"{place}: expected id, text and title with tabs between, found {line!r}"
            )
        key = int(cells[0])
        if key in seen:
            raise DataError(f"{place}: id {key} has come before")
        seen.add(key)
        # Published tables quote texts that have quotes in them.
        text = cells[1].strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1].replace('""', '"')
        passages.append(Evidence(key, text, cells[2].strip()))
    if not passages:
        raise DataError(f"{path}: a table without rows")
    return passages


def read_questions(path: str) -> list[Question]:
    """Questions of a table without names: the question, and a list of answers in Python's form.

    Raises:
        DataError: The file cannot be read, or a row is not like that.
    """
    questions = []
    for number, line in read_lines(Path(path)):
        text, _, listed = line.partition("\t")
        try:
            answers = ast.literal_eval(listed.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            answers = None
        if (
            not isinstance(answers, list)
            or not answers
            or not all(isinstance(answer, str) for answer in answers)
        ):
            raise DataError(
                f"{path}, line {number}: expected a question, a tab and a list of texts such as "
                f"['Paris'], found {line!r}"
            )
        questions.append(Question(text.strip().removesuffix("?"), answers))
    return questions

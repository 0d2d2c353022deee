"""What the finetuning tasks learn from: examples of a file or folder, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacore.errors import DataError
from megacore.evaluation.files import read_json_lines, read_lines
from megacore.evaluation.pairs import clean

# A published file may have a few rows that a blank line or a tab broke.
_TOLERATED = 0.01
_LETTERS = "ABCD"
MNLI_LABELS = {"contradiction": 0, "entailment": 1, "neutral": 2}
QQP_LABELS = {"0": 0, "1": 1}


@dataclass(frozen=True)
class Example:
    """One thing to decide.

    Attributes:
        firsts: Text A of each alternative: one for classification, one per answer for a question.
        second: Text B, the same for all.
        label: Number of the right class or alternative; -1 when the file does not say it.
        uid: What identifies it in a file of predictions.
    """

    firsts: tuple[str, ...]
    second: str
    label: int
    uid: int


@dataclass(frozen=True)
class ExampleFile:
    """The examples of one path.

    Attributes:
        name: What the results call it.
        path: Where they come from.
        examples: At least one.
        remarks: Lines about what was left out.
    """

    name: str
    path: str
    examples: Sequence[Example]
    remarks: tuple[str, ...] = ()


def read_race(path: str) -> ExampleFile:
    """Questions with four answers about articles: a folder of .txt files, or one such file.

    Each line is a JSON object with `article`, `questions`, `options` (four per question) and
    `answers` (letters).

    Raises:
        DataError: There are no such files, or a line is not like that.
    """
    root = Path(path)
    files = sorted(root.glob("*.txt")) if root.is_dir() else [root]
    if not files:
        raise DataError(f"{path}: a folder without .txt files")
    examples: list[Example] = []
    for file in files:
        for place, record in read_json_lines(file):
            for question in _questions(record, place):
                examples.append(Example(*question, uid=len(examples)))
    return ExampleFile(_name(path, "RACE"), path, examples)


def _questions(record: dict[str, object], place: str) -> Iterator[tuple[tuple[str, ...], str, int]]:
    article = record.get("article")
    lists = [record.get(name) for name in ("questions", "options", "answers")]
    if not isinstance(article, str) or not all(isinstance(one, list) for one in lists):
        raise DataError(
            f"{place}: expected 'article' (text), 'questions', 'options' and 'answers' (lists)"
        )
    questions, options, answers = (one if isinstance(one, list) else [] for one in lists)
    if not len(questions) == len(options) == len(answers):
        raise DataError(
            f"{place}: {len(questions)} questions, {len(options)} options, {len(answers)} answers"
        )
    article = clean(article)
    for number, (question, choices, answer) in enumerate(
        zip(questions, options, answers, strict=True), 1
    ):
        where = f"{place}, question {number}"
        if not isinstance(question, str):
            raise DataError(f"{where}: expected text, found {type(question).__name__}")
        if (
            not isinstance(choices, list)
            or len(choices) != len(_LETTERS)
            or not all(isinstance(choice, str) for choice in choices)
        ):
            raise DataError(f"{where}: expected {len(_LETTERS)} options, each a text")
        if not isinstance(answer, str) or len(answer) != 1 or answer not in _LETTERS:
            raise DataError(f"{where}: the answer must be one of {_LETTERS}, found {answer!r}")
        asked = [
            question.replace("_", choice) if "_" in question else f"{question} {choice}"
            for choice in choices
        ]
        yield tuple(map(clean, asked)), article, _LETTERS.index(answer)


def read_mnli(path: str) -> ExampleFile:
    """Pairs of sentences: a table with the sentences in columns 9 and 10 and the label last.

    A table of 10 columns has no labels.

    Raises:
        DataError: The file cannot be read, or too many rows are not like that.
    """
    return _read_table(path, "MNLI", MNLI_LABELS, lambda width: (10, width, 8, 9, width > 10))


def read_qqp(path: str) -> ExampleFile:
    """Pairs of questions: a table of 6 columns, the questions in 4 and 5 and the label in 6.

    A table of 3 columns has the questions in 2 and 3 and no labels.

    Raises:
        DataError: The file cannot be read, or too many rows are not like that.
    """

    def columns(width: int) -> tuple[int, int, int, int, bool]:
        return (6, 6, 3, 4, True) if width != 3 else (3, 3, 1, 2, False)

    return _read_table(path, "QQP", QQP_LABELS, columns)


def _read_table(
    path: str,
    task: str,
    labels: dict[str, int],
    columns: Callable[[int], tuple[int, int, int, int, bool]],
) -> ExampleFile:
    """Reads a table with a line of names.

    Args:
        path: The file.
        task: Name of the task.
        labels: Text -> number.
        columns: Width of the line of names -> least width, width of every row, places of the two
            texts, whether the last column is a label.
    """
    rows = read_lines(Path(path))
    _, names = next(rows)
    found = names.split("\t")
    least, width, first, second, has_label = columns(len(found))
    if len(found) < least or len(found) != width:
        raise DataError(
            f"{path}, line 1: expected at least {least} columns for {task}, found {len(found)}"
        )
    examples: list[Example] = []
    broken: list[str] = []
    count = 0
    for number, line in rows:
        count += 1
        cells = line.split("\t")
        fault = _row_fault(cells, width, first, second, labels if has_label else None)
        if fault:
            broken.append(f"{path}, line {number}: {fault}")
            continue
        label = labels[cells[-1].strip()] if has_label else -1
        uid = int(cells[0]) if cells[0].isdecimal() else count - 1
        examples.append(
            Example((clean(cells[first].strip()),), clean(cells[second].strip()), label, uid)
        )
    if not count:
        raise DataError(f"{path}: only a line of names, no examples")
    if len(broken) > _TOLERATED * count:
        more = f" (and {len(broken) - 1} more lines)" if len(broken) > 1 else ""
        raise DataError(broken[0] + more)
    remarks = (f"{broken[0]}; left out {len(broken)} of {count} rows",) if broken else ()
    return ExampleFile(_name(path, task), path, examples, remarks)


def _row_fault(
    cells: Sequence[str], width: int, first: int, second: int, labels: dict[str, int] | None
) -> str | None:
    if len(cells) != width:
        return f"expected {width} columns as in line 1, found {len(cells)}"
    if not cells[first].strip() or not cells[second].strip():
        return "a text is empty"
    if labels is not None and cells[-1].strip() not in labels:
        return f"the label must be one of {', '.join(labels)}, found {cells[-1].strip()!r}"
    return None


def _name(path: str, task: str) -> str:
    """What is behind the name of the task in a path, or its last part, in words with dashes."""
    tail = path.rpartition(f"{task}/")[2] if f"{task}/" in path else Path(path).name
    return tail.strip("/").removesuffix(".tsv").replace("/", "-").replace("_", "-")

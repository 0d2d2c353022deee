"""`megacore data make-task NAME --from CORPUS --output DIR`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from megacore.config.faults import required
from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.data.preprocess.texts import read_texts
from megacore.durable import published
from megacore.errors import EXIT_OK, DataError, Fault
from megacore.evaluation.make_task import language_modelling, pairs, reading
from megacore.evaluation.make_task.corpus import Corpus, read_corpus

Maker = Callable[[Corpus, Random, int], Iterator[tuple[str, str]]]

MAKERS: dict[str, Maker] = {
    "WIKITEXT103": language_modelling.wikitext,
    "LAMBADA": language_modelling.lambada,
    "RACE": reading.race,
    "MNLI": pairs.mnli,
    "QQP": pairs.qqp,
    "NQ": reading.natural_questions,
}


@dataclass(frozen=True, kw_only=True)
class MakeTaskConfig:
    """Which task is made from which text."""

    GROUP: ClassVar[str] = "task"

    name: str | None = flag(
        "NAME", default=None, choices=tuple(MAKERS), help="task whose format the files have"
    )
    source: tuple[str, ...] | None = flag(
        "--from",
        default=None,
        nargs="+",
        help="files, as for megacore preprocess; required",
    )
    output: str | None = flag(
        "--output", default=None, help="folder; the files go into a folder NAME in it; required"
    )
    examples: int = flag(
        "--examples",
        default=1000,
        help="most examples (passages of text for WIKITEXT103) of a file or folder",
        bounds="[6, inf)",
    )
    seed: int = flag("--seed", default=1234, help="the same text and seed give the same files")
    json_keys: tuple[str, ...] = flag(
        "--json-keys", default=("text",), nargs="+", help="fields or columns to read"
    )
    input_format: str = flag(
        "--input-format",
        default="auto",
        choices=("auto", "jsonl", "text", "parquet"),
        help="auto goes by the name: .txt is text, .parquet Parquet, all else JSON lines",
    )

    def faults(self) -> Iterator[Fault]:
        """Required settings that are not given."""
        yield from value_faults(self)
        for name, value in (
            ("NAME", self.name),
            ("--from", self.source),
            ("--output", self.output),
        ):
            if not value:
                yield required(name)


def main(argv: Sequence[str]) -> int:
    """Makes the files of a task; returns the exit code.

    Raises:
        ConfigError: A setting is missing or wrong.
        DataError: The text cannot be read or is too short, or a file cannot be written.
    """
    parsed = parse(
        [MakeTaskConfig],
        argv,
        prog="megacore data make-task",
        description="Make a small data set in the format of a published task from any text.",
    )
    config: MakeTaskConfig = parsed.configs[MakeTaskConfig]
    texts = read_texts(config.source or (), config.json_keys, input_format=config.input_format)
    corpus = read_corpus(texts)
    name = config.name or ""
    root = Path(config.output or "") / name
    files = list(MAKERS[name](corpus, Random(config.seed), config.examples))
    # Tables begin with a line of names.
    empty = [file for file, content in files if content.count("\n") <= file.endswith(".tsv")]
    if empty:
        raise DataError(f"the text is too short for {name}: no examples for {', '.join(empty)}")
    for file, content in files:
        path = root / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with published(path) as out:
                out.write(content.encode())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        print(f"wrote {path} ({content.count(chr(10))} lines)")
    return EXIT_OK

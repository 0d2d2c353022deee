"""The console command `megacore VERB ...`, and how every command of megacore ends.

Exit codes: 0 done, 1 run-time failure, 2 usage or configuration, 130 interrupted. SIGTERM without
a handler ends the process as the system does (143 in a shell).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megacore import __version__
from megacore.config.layers import nearest
from megacore.errors import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_SIGINT,
    Information,
    MegacoreError,
    UsageError,
)
from megacore.parallel.launch import report_to_launcher, speaks_for_all

Main = Callable[[list[str]], int]


@dataclass(frozen=True)
class Verb:
    """One thing that `megacore` does.

    Attributes:
        target: "module:function" of its `main(argv) -> int`, imported only when it is used.
        summary: One line for the help page.
    """

    target: str
    summary: str


VERBS: dict[str, Verb] = {
    "preprocess": Verb(
        "megacore.data.preprocess.cli:main", "tokenize JSON lines or Parquet into .bin/.idx"
    ),
    "merge": Verb("megacore.data.preprocess.merge:main", "join several .bin/.idx pairs into one"),
    "data": Verb("megacore.data.cli:main", "info, show, train-tokenizer: inspect and prepare data"),
    "train": Verb("megacore.training.cli:main", "train a GPT (the same as pretrain_gpt.py)"),
    "generate": Verb("megacore.inference.cli:main", "generate text from a checkpoint"),
    "evaluate": Verb(
        "megacore.evaluation.cli:main", "score a model on a task (the same as tasks/main.py)"
    ),
    "index-evidence": Verb(
        "megacore.evaluation.retrieval.commands:index_evidence",
        "make the vectors of evidence for retrieval (the same as tools/create_doc_index.py)",
    ),
    "train-ict": Verb(
        "megacore.evaluation.retrieval.ict:main",
        "train two encoders for retrieval (the same as pretrain_ict.py)",
    ),
    "lm-eval": Verb(
        "megacore.evaluation.harness:main", "the lm-evaluation-harness, with the model megacore"
    ),
    "convert": Verb(
        "megacore.checkpoint.convert.cli:main",
        "convert a model: Hugging Face, GGUF, Meta Llama, Megatron",
    ),
    "lora": Verb(
        "megacore.checkpoint.lora.cli:main", "join adapters with their base model; PEFT both ways"
    ),
    "checkpoint": Verb(
        "megacore.checkpoint.inspect_cli:main", "verify, show, diff: look at checkpoints"
    ),
    "schedule": Verb(
        "megacore.planning.schedule_command:main", "make, check, simulate, draw a pipeline schedule"
    ),
    "layout": Verb(
        "megacore.planning.layout_command:main", "which processes are together on each axis"
    ),
    "plan": Verb(
        "megacore.planning.plan_command:main", "layouts: time, memory, failures, before renting"
    ),
    "plot": Verb("megacore.training.plot:main", "draw loss, learning rate and throughput of a run"),
    "doctor": Verb("megacore.doctor:main", "say what this machine has, and what is missing"),
}


def help_text() -> str:
    """The page of `megacore --help`."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: megacore VERB [flags]",
            "",
            "Train transformer language models at any scale.",
            "",
            *lines,
            "",
            "  --version    print the version",
            "  --debug      with any verb: show where in the program an error came from",
            "",
            "megacore VERB --help lists the flags of a verb; docs/errors.md explains MC.... ids.",
        ]
    )


def load(target: str) -> Main:
    """The function that "module:function" names.

    Raises:
        ModuleNotFoundError, AttributeError: There is none.
    """
    module, _, name = target.partition(":")
    function: Main = getattr(importlib.import_module(module), name)
    return function


def dispatch(argv: list[str]) -> int:
    """Runs the verb that the first word names.

    Args:
        argv: Words after `megacore`.

    Raises:
        UsageError: There is no such verb.
        Information: `--help` or `--version` was given.
    """
    if not argv:
        raise UsageError(help_text())
    word, rest = argv[0], argv[1:]
    if word in ("-h", "--help", "help"):
        if rest and rest[0] in VERBS:
            return load(VERBS[rest[0]].target)(["--help", *rest[1:]])
        raise Information(help_text())
    if word in ("-V", "--version"):
        raise Information(f"megacore {__version__}")
    verb = VERBS.get(word)
    if verb is None:
        guess = nearest(word, VERBS)
        hint = f"did you mean {guess}?" if guess else "one of: " + ", ".join(VERBS)
        raise UsageError(f"megacore: there is no verb {word!r}; {hint}")
    return load(verb.target)(rest)


def run(function: Main, argv: Sequence[str]) -> int:
    """Runs a command, turns what it raises into a message and an exit code.

    Args:
        function: The command; gets the words without `--debug`.
        argv: Words of the command line, without the program name.

    Returns:
        The exit code of the process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    words = list(argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return function(words)
    except Information as answer:
        return _print_quietly(str(answer))
    except MegacoreError as error:
        if debug:
            logging.getLogger("megacore").error("", exc_info=True)
        report_to_launcher(error)
        if not error.is_common or speaks_for_all():
            print(_message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGINT
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_FAILURE
    except Exception as error:
        report_to_launcher(error)
        raise


def _message(error: MegacoreError) -> str:
    text = str(error)
    return text if isinstance(error, UsageError) else f"error: {text}"


def _print_quietly(text: str) -> int:
    """Prints an answer; a reader that closed the pipe early (`| head`) is no failure."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        _forget_stdout()
    return EXIT_OK


def _forget_stdout() -> None:
    """Lets the interpreter flush standard output into nothing when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command.

    Args:
        argv: Words after `megacore`; by default those of the process.

    Returns:
        The exit code of the process.
    """
    return run(dispatch, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

"""`megacore plan`: which layout, how fast, how much memory; and `plan goodput`."""

from __future__ import annotations

from megacore.cli import Verb, load
from megacore.config.layers import nearest
from megacore.errors import Information, UsageError

SUBCOMMANDS: dict[str, Verb] = {
    "goodput": Verb(
        "megacore.planning.goodput_command:main",
        "failures: effective training time, checkpoint interval, spare nodes",
    ),
}


def help_text() -> str:
    """The page of `megacore plan --help`."""
    width = max(map(len, SUBCOMMANDS)) + 2
    lines = [f"  {name:<{width}}{verb.summary}" for name, verb in SUBCOMMANDS.items()]
    return "\n".join(["usage: megacore plan VERB [flags]", "", *lines])


def main(argv: list[str]) -> int:
    """Entry of the verb `plan`; returns the exit code.

    Raises:
        UsageError: There is no such subcommand.
        Information: Help was asked for.
    """
    if not argv:
        raise UsageError(help_text())
    word, rest = argv[0], argv[1:]
    if word in SUBCOMMANDS:
        return load(SUBCOMMANDS[word].target)(rest)
    if word in ("-h", "--help"):
        raise Information(help_text())
    guess = nearest(word, SUBCOMMANDS)
    hint = f"did you mean {guess}?" if guess else "one of: " + ", ".join(SUBCOMMANDS)
    raise UsageError(f"megacore plan: there is no {word!r}; {hint}")

"""`megacore plan`: which layout, how fast, how much memory; and what is around it."""

from __future__ import annotations

import json
from dataclasses import replace

from megacore.cli import Verb, load
from megacore.errors import EXIT_FAILURE, EXIT_OK, Information, UsageError

SUBCOMMANDS: dict[str, Verb] = {
    "validate": Verb("megacore.planning.validate_command:main", "estimates against published runs"),
    "calibrate": Verb(
        "megacore.planning.calibrate_command:main", "measure this machine and write its profile"
    ),
    "goodput": Verb(
        "megacore.planning.goodput_command:main",
        "failures: effective training time, checkpoint interval, spare nodes",
    ),
}


def main(argv: list[str]) -> int:
    """Entry of the verb `plan`; returns the exit code: 1 when no layout can run.

    Raises:
        UsageError: The command line cannot be understood.
        Information: Help was asked for.
    """
    if argv and argv[0] in SUBCOMMANDS:
        return load(SUBCOMMANDS[argv[0]].target)(argv[1:])
    if argv and not argv[0].startswith("-"):
        words = ", ".join(SUBCOMMANDS)
        raise UsageError(f"megacore plan: there is no {argv[0]!r}; flags, or one of: {words}")
    if not argv:
        raise UsageError(_short_help())
    try:
        return _plan(argv)
    except Information as answer:
        # The page of flags begins with the other forms of the command.
        if any(word in ("--help", "-h") for word in argv):
            raise Information(f"{_short_help()}\n\n{answer}") from None
        raise


def _short_help() -> str:
    width = max(map(len, SUBCOMMANDS)) + 2
    return "\n".join(
        [
            "usage: megacore plan [flags of megacore train] --gpus N [--gpu NAME] ...",
            "       megacore plan --model DIR/config.json --seq-length S --global-batch-size B "
            "--gpus N ...",
            "",
            *(
                f"  megacore plan {name:<{width}}{verb.summary}"
                for name, verb in SUBCOMMANDS.items()
            ),
            "",
            "megacore plan --help lists all flags, megacore plan --help plan those of the cluster.",
        ]
    )


def _plan(argv: list[str]) -> int:
    from megacore.planning.plan_inputs import read_inputs
    from megacore.planning.plan_json import plan_json
    from megacore.planning.plan_picture import plan_picture, scaling_picture, write_picture
    from megacore.planning.plan_search import search
    from megacore.planning.plan_text import plan_lines

    inputs = read_inputs(argv)
    result = search(inputs.model, inputs.profile, inputs.constraints)
    config = inputs.config
    if config.json:
        print(json.dumps(plan_json(inputs, result), indent=2))
    else:
        free = None
        if inputs.constraints.choices:
            free = search(
                inputs.model, inputs.profile, replace(inputs.constraints, choices={}, top=1)
            )
        print("\n".join(plan_lines(inputs, result, free)))
    if not result.plans:
        return EXIT_FAILURE
    for name in config.picture or ():
        write_picture(plan_picture(inputs, result), name)
    if config.scaling:
        write_picture(scaling_picture(inputs), config.scaling)
    if not config.json:
        for name in config.picture_files:
            print(f"wrote {name}")
    return EXIT_OK

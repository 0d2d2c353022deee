"""`megacore lm-eval`: the lm-evaluation-harness's command, with the model `megacore`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from megacore.errors import EXIT_OK, UsageError

MODEL_MODULE = "megacore.evaluation.harness_model"
_USAGE = """usage: megacore lm-eval --model megacore --model_args load=DIR --tasks NAME,... [flags]

The flags are those of the lm-evaluation-harness, which is not installed: pip install lm-eval."""


def main(argv: Sequence[str]) -> int:
    """Runs the harness's command.

    Args:
        argv: Its words, such as `--model megacore --model_args load=DIR --tasks lambada_openai`.

    Returns:
        Exit code 0.

    Raises:
        UsageError: The harness is not installed.
    """
    try:
        harness = importlib.import_module("lm_eval.__main__")
    except ModuleNotFoundError as error:
        if {"-h", "--help"} & set(argv):
            print(_USAGE)
            return EXIT_OK
        raise UsageError(
            f"megacore lm-eval needs the package lm-eval (pip install lm-eval): {error}"
        ) from error
    importlib.import_module(MODEL_MODULE)
    before = sys.argv
    sys.argv = ["megacore lm-eval", *argv]
    try:
        harness.cli_evaluate()
    finally:
        sys.argv = before
    return EXIT_OK

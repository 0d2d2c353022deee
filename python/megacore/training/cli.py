"""`megacore train`, and `pretrain_*.py` with the same flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megacore.errors import EXIT_OK
from megacore.training.run_config import RunConfig, parse_run


def checkpoint_arguments(run: RunConfig) -> Mapping[str, Any]:
    """The settings that the checkpoint of `--load` was saved with.

    Raises:
        CheckpointError: There is a checkpoint and it cannot be read.
    """
    # Only a command line that needs a checkpoint pays for loading what reads it.
    from megacore.checkpoint import decide, open_checkpoint

    plan = decide(run.checkpoint)
    if plan.source is None:
        return {}
    arguments = open_checkpoint(plan.source).values.get("args")
    return arguments if isinstance(arguments, dict) else {}


def main(argv: list[str]) -> int:
    """Entry of the verb `train`."""
    run, origins = parse_run(argv, read_checkpoint=checkpoint_arguments)
    # Only a valid command line pays for loading the training stack.
    if run.parallel.simulate_world is not None:
        from megacore.planning.simulate_world import simulate_world
        from megacore.planning.world_text import format_world

        print(format_world(simulate_world(run)))
        return EXIT_OK
    from megacore.training.pretrain import pretrain

    return pretrain(run, origins)

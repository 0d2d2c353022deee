"""A whole training run: what one of its processes does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime

import torch

from megacore.config.layers import Origin
from megacore.errors import EXIT_OK
from megacore.parallel.groups import ParallelGroups, single_process_groups
from megacore.training.live_view import Screen
from megacore.training.loop import finish, train
from megacore.training.run_config import RunConfig
from megacore.training.seeding import deterministic_algorithms
from megacore.training.setup import Setup
from megacore.training.signals import TermSignal


def pretrain(
    run: RunConfig,
    origins: Mapping[str, Origin] | None = None,
    *,
    screen: Screen | None = None,
    groups: ParallelGroups | None = None,
) -> int:
    """Train, or evaluate only, as `run` says.

    Args:
        run: Resolved settings.
        origins: Where each value came from; written beside the settings in the metrics file.
        screen: Prints lines; by default standard output, with a live view on a terminal, of the
            first process. The others show nothing.
        groups: The groups of this process; by default those that the launcher's variables and the
            settings describe.

    Returns:
        Exit code 0, for the end of training as for an early exit on purpose.

    Raises:
        MegacoreError: The run cannot go on; the message says why.
    """
    started = datetime.now()
    with ExitStack() as stack:
        groups = groups or single_process_groups()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if screen is None or not groups.world.is_first:
            screen = Screen(live=not run.logging.no_live_view, silent=not groups.world.is_first)
        screen = stack.enter_context(screen)
        term = stack.enter_context(TermSignal(save_and_exit=run.training.exit_signal_handler))
        stack.enter_context(deterministic_algorithms(run.training.deterministic_mode))
        setup = Setup(
            run,
            groups=groups,
            device=device,
            stack=stack,
            screen=screen,
            term=term,
            started=started,
            origins=origins,
        )
        trainer = setup.build()
        stack.callback(trainer.close)
        if run.training.skip_train:
            screen.line("skipping training (--skip-train is on) ...")
            trainer.evaluate_at_end()
        elif not train(trainer):
            finish(trainer)
    return EXIT_OK

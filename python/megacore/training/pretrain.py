"""A whole training run: what one of its processes does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import torch

from megacore.config.layers import Origin
from megacore.errors import EXIT_OK
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.launch import current_process, meeting_point
from megacore.parallel.pipeline_plan import ends_of_file
from megacore.parallel.startup import parallel_groups
from megacore.system_memory import keep_freed_memory
from megacore.training.family import Family
from megacore.training.live_view import Screen
from megacore.training.loop import finish, train
from megacore.training.run_config import RunConfig
from megacore.training.seeding import deterministic_algorithms
from megacore.training.setup import Setup
from megacore.training.signals import TermSignal
from megacore.training.trainer import Trainer


def pretrain(
    run: RunConfig,
    origins: Mapping[str, Origin] | None = None,
    *,
    screen: Screen | None = None,
    groups: ParallelGroups | None = None,
    family: Family[Any] | None = None,
) -> int:
    """Train, or evaluate only, as `run` says.

    Args:
        run: Resolved settings.
        origins: Where each value came from; written beside the settings in the metrics file.
        screen: Prints lines; by default standard output, with a live view on a terminal, of the
            first process. The others show nothing.
        groups: The groups of this process; by default those that the launcher's variables and the
            settings describe.
        family: What is trained; by default what `--model-family` names.

    Returns:
        Exit code 0, for the end of training as for an early exit on purpose.

    Raises:
        MegacoreError: The run cannot go on; the message says why.
    """
    converts = run.checkpoint.ckpt_convert_save is not None
    if converts:
        training = replace(run.training, skip_train=False)
        run = replace(run, checkpoint=run.checkpoint.converting(), training=training)
    with training_session(run, origins, screen=screen, groups=groups, family=family) as trainer:
        screen = trainer.parts.screen
        if converts:
            trainer.save_for_good()
            screen.line(f"converted checkpoint: {run.checkpoint.load} -> {run.checkpoint.save}")
        elif run.training.skip_train:
            screen.line("skipping training (--skip-train is on) ...")
            trainer.evaluate_at_end()
        elif not train(trainer):
            finish(trainer)
    return EXIT_OK


@contextmanager
def training_session(
    run: RunConfig,
    origins: Mapping[str, Origin] | None = None,
    *,
    screen: Screen | None = None,
    groups: ParallelGroups | None = None,
    family: Family[Any] | None = None,
) -> Iterator[Trainer]:
    """A run that is ready for its first iteration; what it holds is closed behind it.

    Args:
        run: Resolved settings.
        origins: As for `pretrain`, and so the others.
        screen: Prints lines.
        groups: The groups of this process.
        family: What is trained.

    Raises:
        MegacoreError: The run cannot begin or go on; the message says why.
    """
    started = datetime.now()
    with ExitStack() as stack:
        groups = groups or stack.enter_context(_launched_groups(run))
        device = training_device(run)
        if device.type == "cpu":
            keep_freed_memory()
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
            family=family,
        )
        trainer = setup.build()
        stack.callback(trainer.close)
        yield trainer


def training_device(run: RunConfig) -> torch.device:
    """Where this process trains: its GPU, or the CPU.

    Gloo is the transport of CPUs: asked for among several processes, they train on CPUs.

    Args:
        run: Resolved settings.
    """
    parallel = run.parallel
    wants_cpu = parallel.world_size > 1 and parallel.distributed_backend == "gloo"
    if wants_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _launched_groups(run: RunConfig) -> AbstractContextManager[ParallelGroups]:
    """The groups that the launcher's variables and the settings describe."""
    return parallel_groups(
        run.parallel,
        process=current_process(),
        meeting_point=meeting_point,
        settings=run.values(),
        ends=ends_of_file(run.parallel),
    )

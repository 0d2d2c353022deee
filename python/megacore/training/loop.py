"""The training loop: the order of things in one iteration, and when to stop."""

from __future__ import annotations

from collections.abc import Callable

from megacore.training.trainer import Trainer


def train(trainer: Trainer, *, after_step: Callable[[], None] | None = None) -> bool:
    """Train until the last iteration or until a reason to exit comes up.

    The order is part of the contract with users' scripts: an evaluation is over before the
    checkpoint of the same iteration is written, and a signal outranks the other exits.

    Args:
        trainer: The run.
        after_step: What else is done between two iterations, before checkpoint and exits.

    Returns:
        True when training ended early on purpose (signal, duration, interval).

    Raises:
        NonFiniteError: The loss or a gradient is not finite and checking is on.
    """
    trainer.begin()
    while not trainer.is_finished:
        trainer.choose_batch_size()
        trainer.run_step()
        trainer.report_step()
        trainer.stop_if_not_finite()
        if trainer.evaluation_is_due:
            trainer.evaluate_between_steps()
        if after_step is not None:
            after_step()
        if trainer.save_and_exit_if_due():
            return True
        trainer.tidy_up()
    return False


def finish(trainer: Trainer) -> None:
    """What follows the last iteration: the last checkpoint, then validation and test loss."""
    trainer.save_at_end()
    trainer.evaluate_at_end()

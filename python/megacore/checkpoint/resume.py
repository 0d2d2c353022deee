"""What a run starts from: one decision, made before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megacore.checkpoint import layout
from megacore.checkpoint.config import CheckpointConfig
from megacore.checkpoint.open import stored_iteration
from megacore.errors import CheckpointError


@dataclass(frozen=True)
class ResumePlan:
    """What to load, and where the run begins.

    Attributes:
        source: Checkpoint directory, None for a fresh start.
        iteration: Iteration that the run begins at; 0 for a fresh start or weights alone.
        weights_only: Load the model and nothing else: no optimizer, schedule, RNG, data position.
        load_optimizer: Load the optimizer and the position in the schedules.
        load_rng: Load the random number states.
        warnings: To be shown where nobody can miss them.
    """

    source: Path | None
    iteration: int = 0
    weights_only: bool = False
    load_optimizer: bool = False
    load_rng: bool = False
    warnings: tuple[str, ...] = ()


def decide(config: CheckpointConfig) -> ResumePlan:
    """Decides what a run starts from.

    Without `--load` it starts fresh. A `--load` directory with nothing in it starts fresh too,
    with a warning (scripts pass the same directory as `--save` and `--load`, to resume themselves
    from the second time on), unless `--pretrained-checkpoint` names another source or one of
    `--exit-on-missing-checkpoint`, `--finetune`, `--ckpt-step` says that a checkpoint must be
    there. Something that is there but cannot be read is always an error.

    A non-persistent checkpoint beside those of `--load` is taken when it is not older than they
    are, unless `--ckpt-step` names one of them.

    Raises:
        CheckpointError: A checkpoint must be there and is not, or it cannot be read.
    """
    strict = {
        "--exit-on-missing-checkpoint": config.exit_on_missing_checkpoint,
        "--finetune": config.finetune,
        "--ckpt-step": config.ckpt_step is not None,
        "--ckpt-convert-format": config.ckpt_convert_format is not None,
    }
    demanded_by = ", ".join(flag for flag, given in strict.items() if given)
    if config.load is not None:
        found = _newest_of_both(config.load, config)
        if found is not None:
            return _plan(found, config, finetune=config.finetune)
    if config.pretrained_checkpoint is not None and config.ckpt_step is None:
        found = layout.find_checkpoint(config.pretrained_checkpoint)
        if found is None:
            raise CheckpointError(
                f"--pretrained-checkpoint {config.pretrained_checkpoint}: no checkpoint found there"
            )
        return _plan(found, config, finetune=True)
    if demanded_by and config.load is None:
        raise CheckpointError(f"{demanded_by}: no --load says which checkpoint directory to read")
    if demanded_by:
        raise CheckpointError(
            f"--load {config.load}: no checkpoint found there, and {demanded_by} demands one"
        )
    if config.load is not None:
        return ResumePlan(source=None, warnings=(_fresh_start_warning(config.load),))
    return ResumePlan(source=None)


def _newest_of_both(load: str, config: CheckpointConfig) -> Path | None:
    """The checkpoint of `--load`, or the non-persistent one when that is not older."""
    found = layout.find_checkpoint(load, step=config.ckpt_step)
    beside = config.non_persistent_load
    if beside is None or config.ckpt_step is not None:
        return found
    other = layout.find_checkpoint(beside)
    if other is None or found is None:
        return found or other
    if other.name == layout.RELEASE:
        raise CheckpointError(f"{other}: a non-persistent checkpoint cannot be a release")
    newer = found.name == layout.RELEASE or _iteration(other) >= _iteration(found)
    return other if newer else found


def _iteration(path: Path) -> int:
    """The iteration that a directory is named after; a displaced one still has its own."""
    return int(path.name.rpartition("_")[2])


def _plan(found: Path, config: CheckpointConfig, *, finetune: bool) -> ResumePlan:
    weights_only = finetune or found.name == layout.RELEASE
    iteration = stored_iteration(found)
    warnings = []
    if layout.read_tracker(found.parent) is None:
        warnings.append(
            f"{found.parent} has no {layout.TRACKER}; loading its newest complete checkpoint, "
            f"{found.name}"
        )
    if found.parent == config.non_persistent_load:
        warnings.append(f"the newest checkpoint is a non-persistent one: {found}")
    return ResumePlan(
        source=found,
        iteration=0 if weights_only else iteration,
        weights_only=weights_only,
        load_optimizer=not (weights_only or config.no_load_optim),
        load_rng=not (weights_only or config.no_load_rng),
        warnings=tuple(warnings),
    )


def _fresh_start_warning(load: str) -> str:
    lines = (
        f"NO CHECKPOINT FOUND in --load {load}",
        "The run starts from iteration 0 with freshly initialised weights.",
        "Pass --exit-on-missing-checkpoint to make this an error.",
    )
    width = max(len(line) for line in lines)
    return "\n".join(
        ("*" * (width + 4), *(f"* {line.ljust(width)} *" for line in lines), "*" * (width + 4))
    )

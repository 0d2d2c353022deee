"""What a run with adapters starts from: a base model that stays as it is, and perhaps adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacore.checkpoint import ResumePlan, open_checkpoint
from megacore.checkpoint.adapters import base_arguments, find_base, holds_adapters
from megacore.errors import CheckpointError
from megacore.training.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class AdaptedStart:
    """What a run with adapters starts from.

    Attributes:
        base: Checkpoint of the base model.
        plan: What to take from a checkpoint of adapters; without source for new ones.
        arguments: What the run's own checkpoints say about the base.
    """

    base: Path
    plan: ResumePlan
    arguments: dict[str, str]

    @property
    def base_plan(self) -> ResumePlan:
        """To take the weights of the base, and nothing else."""
        return ResumePlan(source=self.base, weights_only=True)


def adapted_start(run: RunConfig, plan: ResumePlan) -> AdaptedStart:
    """Divides what a run starts from into the base model and the adapters.

    What was found is either the base model, from which new adapters start at iteration 0, or
    adapters of an earlier run, which name their base.

    Args:
        run: Resolved settings, with adapters.
        plan: What the flags of checkpoints led to.

    Raises:
        CheckpointError: There is no base model, or it is not the one of the adapters.
    """
    if plan.source is None:
        raise CheckpointError(
            f"--load {run.checkpoint.load}: no checkpoint found there, so that there is nothing to "
            "adapt: name the base model with --pretrained-checkpoint DIR"
        )
    arguments = _arguments(plan.source)
    if not holds_adapters(arguments):
        fresh = ResumePlan(source=None, warnings=plan.warnings)
        return AdaptedStart(base=plan.source, plan=fresh, arguments=base_arguments(plan.source))
    given = run.checkpoint.pretrained_checkpoint if run.checkpoint.load is not None else None
    base = find_base(arguments, plan.source, given=given)
    if holds_adapters(_arguments(base)):
        raise CheckpointError(f"{base} holds adapters, not the model that they belong to")
    return AdaptedStart(base=base, plan=plan, arguments=base_arguments(base))


def _arguments(path: Path) -> dict[str, Any]:
    arguments = open_checkpoint(path).values.get("args")
    return arguments if isinstance(arguments, dict) else {}

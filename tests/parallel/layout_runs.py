"""Runs of a few training steps in any layout, with all that they leave behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from torch import Tensor
from training_worlds import groups_of, run_config

from megacore.checkpoint.chunks import part_regions, tiling_fault
from megacore.checkpoint.pieces import Part
from megacore.parallel.groups import Group
from megacore.training.checkpoint_parts import model_parts, optimizer_parts
from megacore.training.family import Family
from megacore.training.live_view import Screen
from megacore.training.run_config import RunConfig
from megacore.training.setup import Setup
from megacore.training.signals import TermSignal


@dataclass
class Stepped:
    """What a run left on one process.

    Attributes:
        losses: Of each step, as the process was told.
        norms: Of the gradient of each step.
        parts: What the process would write into a checkpoint.
    """

    losses: list[float]
    norms: list[float]
    parts: list[Part]


def step_here(
    world: Group | None,
    flags: str,
    dtype: str,
    family: Callable[[RunConfig], Family[Any]] | None = None,
) -> Stepped:
    """Train for `--train-iters` steps in this process, as one of `world`.

    Args:
        world: All processes, None for a run of one.
        flags: Added to those of the small run.
        dtype: Of parameters and activations.
        family: Makes what is trained; by default what the flags name.
    """
    run = run_config(flags, 1 if world is None else world.size)
    groups = groups_of(world, run)
    losses, norms = [], []
    with ExitStack() as stack:
        setup = Setup(
            run,
            groups=groups,
            device=torch.device("cpu"),
            stack=stack,
            screen=Screen(live=False, stream=io.StringIO(), silent=True),
            term=TermSignal(save_and_exit=False),
            started=datetime.now(),
            dtype=getattr(torch, dtype),
            family=None if family is None else family(run),
        )
        trainer = setup.build()
        trainer.begin()
        while not trainer.is_finished:
            trainer.choose_batch_size()
            outcome = trainer.run_step()
            losses.extend(outcome.losses.values())
            norms.append(outcome.grad_norm or 0.0)
        learner = trainer.learner
        parts: list[Part] = [*model_parts(learner, groups), *optimizer_parts(learner, groups)]
        kept = [Part(part.layout, part.data.reshape(-1).clone(), part.start) for part in parts]
        trainer.close()
    return Stepped(losses, norms, kept)


def full_state(results: list[Stepped]) -> dict[str, Tensor]:
    """Weights and optimizer state of the whole model, by name."""
    found: dict[str, list[Part]] = {}
    for part in (part for result in results for part in result.parts):
        found.setdefault(part.layout.name, []).append(part)
    return {name: _assembled(parts) for name, parts in found.items()}


def _assembled(parts: list[Part]) -> Tensor:
    shape = parts[0].layout.full_shape
    full = torch.empty(shape, dtype=parts[0].data.dtype)
    regions = []
    for part in parts:
        for region, view in part_regions(part.layout, part.start, part.data):
            region.of(full, (0,) * len(shape)).copy_(view)
            regions.append(region)
    assert tiling_fault(shape, regions) is None
    return full

"""Finetuning runs on a few conversations, in any layout."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor
from training_worlds import groups_of

from megacore.parallel.groups import Group
from megacore.training.live_view import Screen
from megacore.training.loop import finish, train
from megacore.training.run_config import parse_run
from megacore.training.setup import Setup
from megacore.training.signals import TermSignal

SMALL = (
    "--sft --num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --lr 3e-3 --min-lr 3e-3 --eval-interval 1000 --eval-iters 0 "
    "--tokenizer-type HuggingFaceTokenizer --attention-dropout 0 --hidden-dropout 0 "
    "--init-method-std 0.1 --num-workers 0 --peak-tflops 1 --log-interval 1 --adam-eps 1e-6"
)


@dataclass
class Finetuned:
    """What a run left on one process.

    Attributes:
        printed: What it printed.
        losses: Of each step.
        weights: Local parameters.
    """

    printed: str
    losses: list[float]
    weights: dict[str, Tensor]


def finetune_here(world: Group | None, flags: str, dtype: str | None = None) -> Finetuned:
    """Train in this process, as one of `world`.

    Args:
        world: All processes, None for a run of one.
        flags: Added to those of the small run.
        dtype: Of parameters and activations, instead of what the flags say.
    """
    size = 1 if world is None else world.size
    environment = {"RANK": "0", "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
    run, _ = parse_run(f"{SMALL} {flags}".split(), environment=environment)
    groups = groups_of(world, run)
    printed = io.StringIO()
    losses = []
    with ExitStack() as stack:
        setup = Setup(
            run,
            groups=groups,
            device=torch.device("cpu"),
            stack=stack,
            screen=Screen(live=False, stream=printed, silent=not groups.world.is_first),
            term=TermSignal(save_and_exit=False),
            started=datetime.now(),
            dtype=None if dtype is None else getattr(torch, dtype),
        )
        trainer = setup.build()
        step = trainer.run_step

        def noted() -> object:
            outcome = step()
            losses.append(outcome.losses["lm loss"])
            return outcome

        trainer.run_step = noted  # type: ignore[method-assign, assignment]
        if not train(trainer):
            finish(trainer)
        trainer.close()
    trainer.learner.optimizer.finish_params()
    named = trainer.learner.model.named_parameters()
    weights = {name: parameter.detach().clone() for name, parameter in named}
    return Finetuned(printed.getvalue(), losses, weights)

"""Whole training runs of a small GPT in the processes of a pool, in any layout and dtype."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime

import torch
from shared_groups import groups_for
from torch import Tensor

from megacore.parallel.groups import Group, ParallelGroups, single_process_groups
from megacore.parallel.layout import ParamLayout, full_tensor
from megacore.parallel.pipeline_plan import ends_of_file
from megacore.parallel.startup import build_groups
from megacore.training.live_view import Screen
from megacore.training.loop import finish, train
from megacore.training.run_config import RunConfig, parse_run
from megacore.training.setup import Setup
from megacore.training.signals import TermSignal

SMALL = (
    "--num-layers 4 --hidden-size 16 --num-attention-heads 4 --seq-length 16 "
    "--max-position-embeddings 16 --micro-batch-size 2 --global-batch-size 16 --train-iters 5 "
    "--lr 1e-2 --lr-warmup-iters 2 --mock-data --tokenizer-type NullTokenizer --vocab-size 57 "
    "--make-vocab-size-divisible-by 8 --num-workers 0 --log-interval 1 --eval-interval 3 "
    "--eval-iters 2 --peak-tflops 1 --attention-dropout 0 --hidden-dropout 0 "
    "--init-method-std 0.2 --adam-eps 1e-6"
)


@dataclass
class Trained:
    """What a run gave on one process.

    Attributes:
        printed: What it printed.
        weights: Parameter name in the full model -> layout, local tensor.
    """

    printed: str
    weights: dict[str, tuple[ParamLayout, Tensor]] = field(default_factory=dict)


def groups_of(world: Group | None, run: RunConfig) -> ParallelGroups:
    """The groups of a run inside the pool's group."""
    if world is None:
        return single_process_groups()
    process_group = world.process_group
    assert process_group is not None
    ends = ends_of_file(run.parallel)
    made = groups_for(run.parallel, world, ends)
    return build_groups(run.parallel, world=process_group, ends=ends, made=made)


def run_config(flags: str, world_size: int) -> RunConfig:
    """A resolved run of the small model."""
    small = SMALL
    if "--train-samples" in flags:
        small = small.replace("--train-iters 5", "").replace("--lr-warmup-iters 2", "")
    environment = {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    run, _ = parse_run(f"{small} {flags}".split(), environment=environment)
    return run


def train_here(
    world: Group | None, flags: str, dtype: str | None = None, *, told_to_end: bool = False
) -> Trained:
    """Train in this process, as one of `world`.

    Args:
        world: All processes, None for a run of one.
        flags: Added to those of the small run.
        dtype: Of parameters and activations, instead of what the flags say.
        told_to_end: SIGTERM came before the first iteration.
    """
    run = run_config(flags, 1 if world is None else world.size)
    printed = io.StringIO()
    groups = groups_of(world, run)
    term = TermSignal(save_and_exit=True)
    term.received = told_to_end
    with ExitStack() as stack:
        screen = Screen(live=False, stream=printed, silent=not groups.world.is_first)
        setup = Setup(
            run,
            groups=groups,
            device=torch.device("cpu"),
            stack=stack,
            screen=screen,
            term=term,
            started=datetime.now(),
            dtype=None if dtype is None else getattr(torch, dtype),
        )
        trainer = setup.build()
        if not train(trainer):
            finish(trainer)
        trainer.close()
    trainer.learner.optimizer.finish_params()
    model = trainer.learner.model
    weights = {
        name: (model.layouts[name], parameter.detach().clone())
        for name, parameter in model.named_parameters()
    }
    return Trained(printed.getvalue(), weights)


def full_weights(results: list[Trained]) -> dict[str, Tensor]:
    """The whole parameters from the parts of all processes.

    Parts that several processes have, and copies, must be bitwise equal.
    """
    parts: dict[str, dict[int, tuple[ParamLayout, Tensor]]] = {}
    for result in results:
        for layout, tensor in result.weights.values():
            shards = parts.setdefault(layout.name, {})
            if layout.shard in shards:
                assert torch.equal(shards[layout.shard][1], tensor), layout.name
            shards[layout.shard] = (layout, tensor)
    return {
        name: full_tensor([one for one, _ in shards.values()], [t for _, t in shards.values()])
        for name, shards in parts.items()
    }

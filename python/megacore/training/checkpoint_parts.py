"""What each process of a run writes into a checkpoint, and takes from one.

Every value is written by exactly one process: parameters that several processes have are dealt out
among them, and with a sharded optimizer each writes the ranges that it owns.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint import Checkpoint, VocabularyRows, gather_rng, restore_rng
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.strictness import Strictness
from megacore.errors import CheckpointError
from megacore.layers.lora import is_adapter_name
from megacore.parallel.groups import Group, ParallelGroups
from megacore.parallel.layout import ParamLayout
from megacore.parallel.random_streams import RandomStream
from megacore.training.agreement import gathered_texts
from megacore.training.learner import Learner
from megacore.training.shared_reading import SharedReading, owners

MODEL, OPTIMIZER, RNG = "model", "optimizer", "rng"
_STREAM = "tensor_parallel."


@dataclass(frozen=True)
class GroupWriters:
    """The processes of a group as the writers of a checkpoint.

    Attributes:
        group: The processes.
        device: Where the group's backend wants its tensors.
    """

    group: Group
    device: torch.device

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return self.group.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.group.size

    def exchange(self, value: Any) -> list[Any]:
        """The values that all of them gave, in order."""
        texts = gathered_texts(json.dumps(value), self.group, self.device)
        return [json.loads(text) for text in texts]


def model_parts(learner: Learner, groups: ParallelGroups, *, spread: bool = True) -> list[Part]:
    """The parameters that this process writes; of an adapted model the adapters.

    Args:
        learner: Has them.
        groups: The processes of the run.
        spread: Of what several processes have each writes a share; otherwise the first one all.
    """
    learner.optimizer.finish_params()
    layouts, base_is_kept = learner.model.layouts, learner.model.is_adapted
    named = [
        (layouts[name], parameter.detach())
        for name, parameter in learner.model.named_parameters()
        if _is_writer(layouts[name], groups) and (not base_is_kept or is_adapter_name(name))
    ]
    dealt = owners([parameter.numel() for _, parameter in named], groups.dp_cp, spread=spread)
    return [
        Part(layout, parameter)
        for (layout, parameter), owner in zip(named, dealt, strict=True)
        if owner == groups.dp_cp.rank
    ]


def optimizer_parts(learner: Learner, groups: ParallelGroups, *, spread: bool = True) -> list[Part]:
    """The ranges of the optimizer state that this process writes; arguments as `model_parts`."""
    pieces = [p for p in learner.optimizer.state_pieces() if _is_writer(p.layout, groups)]
    sizes = [piece.data.numel() for piece in pieces]
    replicas = learner.optimizer.replicas
    dealt = owners(sizes, replicas, spread=spread)
    return [
        Part(p.layout, p.data, p.start)
        for p, owner in zip(pieces, dealt, strict=True)
        if owner == replicas.rank
    ]


def _is_writer(layout: ParamLayout, groups: ParallelGroups) -> bool:
    """Whether this tensor-parallel process has something that no other one has."""
    return not layout.is_copy and (layout.is_sharded or groups.tp.is_first)


@dataclass(frozen=True)
class Loaded:
    """What reading a group of tensors gave.

    Attributes:
        notes: For the log.
        shared: Hands round what was read for others, once all processes have read their share.
    """

    notes: list[str]
    shared: SharedReading | None


def load_model(
    checkpoint: Checkpoint,
    learner: Learner,
    writers: GroupWriters,
    *,
    cast: bool,
    vocabulary: VocabularyRows | None,
    strictness: Strictness,
    adapters: bool = False,
    share: Group | None = None,
) -> Loaded:
    """Fills the adapters of this process, or all its other parameters.

    Args:
        checkpoint: Has them.
        learner: Whose model it is.
        writers: All processes of the run.
        cast: As `Checkpoint.fill`.
        vocabulary: As `Checkpoint.fill`.
        strictness: As `Checkpoint.fill`.
        adapters: Fill the adapters.
        share: Processes with the same parameters, to read each of them once.
    """
    learner.optimizer.finish_params()
    layouts = learner.model.layouts
    targets = {
        name: parameter.detach()
        for name, parameter in learner.model.named_parameters()
        if is_adapter_name(name) == adapters
    }
    shared = SharedReading(list(targets.values()), share) if share else None
    notes = checkpoint.load_into(
        MODEL,
        targets,
        layouts=layouts,
        cast=cast,
        vocabulary=vocabulary,
        others=_known({layouts[name].name for name in targets}, writers),
        strictness=strictness,
        reads=shared.reads if shared else None,
    )
    return Loaded(notes, shared)


def load_optimizer(
    checkpoint: Checkpoint,
    learner: Learner,
    writers: GroupWriters,
    *,
    vocabulary: VocabularyRows | None,
    strictness: Strictness,
    share: bool = False,
) -> Loaded:
    """Fills the optimizer state of this process, after its parameters.

    Each process reads the ranges that it owns, and nothing else.

    Args:
        checkpoint: Has it.
        learner: Whose optimizer it is.
        writers: All processes of the run.
        vocabulary: As `Checkpoint.fill`.
        strictness: As `Checkpoint.fill`.
        share: Processes that own the same ranges read each of them once.
    """
    # Main parameters that the checkpoint lacks (rows of a larger vocabulary) are the model's.
    learner.optimizer.refresh_main_params()
    pieces = list(learner.optimizer.state_pieces())
    shared = None
    if share:
        shared = SharedReading([p.data for p in pieces], learner.optimizer.replicas)
    notes = checkpoint.fill(
        OPTIMIZER,
        [Part(piece.layout, piece.data, piece.start) for piece in pieces],
        vocabulary=vocabulary,
        others=_known({piece.layout.name for piece in pieces}, writers),
        strictness=strictness,
        reads=shared.reads if shared else None,
    )
    return Loaded(notes, shared)


def _known(own: Collection[str], writers: GroupWriters) -> set[str]:
    """Names that any process of the run has."""
    return {name for names in writers.exchange(sorted(own)) for name in names}


def rng_layout(groups: ParallelGroups) -> list[list[int]]:
    """What random states belong to: they mean nothing to another grid of processes.

    Returns:
        Size of the tensor, context, pipeline and data axis, and how far apart neighbours are on it.
    """
    axes = (groups.tp, groups.cp, groups.pp, groups.dp)
    return [[g.size, g.ranks[1] - g.ranks[0] if g.size > 1 else 0] for g in axes]


def gather_rng_of(
    groups: ParallelGroups, stream: RandomStream | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random states of this process, as tensors and JSON values, under names of its own."""
    tensors, values = gather_rng()
    if stream is not None:
        tensors |= {_STREAM + name: state for name, state in stream.state_tensors().items()}
    if groups.world.size == 1:
        return tensors, values
    prefix = _rank_name(groups.rank)
    return {f"{prefix}.{name}": state for name, state in tensors.items()}, {prefix: values}


def restore_rng_of(
    checkpoint: Checkpoint,
    values: Mapping[str, Any],
    groups: ParallelGroups,
    stream: RandomStream | None,
) -> None:
    """Puts the random number generators of this process where the checkpoint left them.

    Raises:
        CheckpointError: The states are not there or not usable.
    """
    tensors: Mapping[str, Tensor] = checkpoint.tensors(RNG)
    if groups.world.size > 1:
        prefix = _rank_name(groups.rank)
        values = values.get(prefix, {})
        tensors = {
            name.removeprefix(f"{prefix}."): state
            for name, state in tensors.items()
            if name.startswith(f"{prefix}.")
        }
    restore_rng(tensors, values)
    if stream is not None:
        states = {
            name.removeprefix(_STREAM): state
            for name, state in tensors.items()
            if name.startswith(_STREAM)
        }
        if not states:
            raise CheckpointError(f"{checkpoint.path}: the tensor-parallel random state is missing")
        stream.load_state(states)


def _rank_name(rank: int) -> str:
    return f"rank{rank:05d}"

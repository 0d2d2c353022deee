"""What is trained: which parameters, at which rates, and what other processes have of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from megacore.parallel.groups import Group, ParallelGroups
from megacore.parallel.layout import ParamLayout

VOCABULARY_WEIGHTS = ("word_embeddings.weight", "output_layer.weight")
WORD_EMBEDDING = "embedding.word_embeddings.weight"
POSITION_EMBEDDING = "embedding.position_embeddings.weight"

Chunk = nn.Module | Mapping[str, nn.Parameter]
"""A model or pipeline stage, or its parameters by name."""


@dataclass(frozen=True, order=True)
class GroupKey:
    """What the parameters of one group have in common.

    Attributes:
        wd_mult: Factor on the weight decay (0 for biases and norms).
        lr_mult: Factor on the learning rate.
        decoupled: Takes the rate of `--decoupled-lr` instead of `--lr`.
    """

    wd_mult: float = 1.0
    lr_mult: float = 1.0
    decoupled: bool = False


GroupRule = Callable[[str, nn.Parameter], GroupKey]


def default_rule(*, decoupled_lr: bool) -> GroupRule:
    """The usual rule: no decay for biases and one-dimensional parameters.

    Args:
        decoupled_lr: Put the word embedding and the output layer into groups of their own rate.
    """

    def rule(name: str, param: nn.Parameter) -> GroupKey:
        no_decay = name.endswith(".bias") or param.ndim == 1
        return GroupKey(
            wd_mult=0.0 if no_decay else 1.0,
            decoupled=decoupled_lr and name.endswith(VOCABULARY_WEIGHTS),
        )

    return rule


@dataclass(frozen=True, eq=False)
class TrainedParam:
    """A parameter and how it is updated, reduced and counted.

    Attributes:
        name: Its name in the model.
        param: The parameter.
        key: Its group.
        layout: How tensor parallelism cut it.
        counted: Norms and counts of this process take it; of several equal ones one does.
        tied: Members of this group hold equal parameters and sum their gradients, or None.
        chunks: Chunks of the model that use it.
    """

    name: str
    param: nn.Parameter
    key: GroupKey
    layout: ParamLayout
    counted: bool = True
    tied: Group | None = None
    chunks: tuple[int, ...] = (0,)

    @property
    def is_shared(self) -> bool:
        """Whether several chunks of this process add to its gradient."""
        return len(self.chunks) > 1


def trained_parameters(
    chunks: Sequence[Chunk],
    rule: GroupRule,
    *,
    layouts: Mapping[str, ParamLayout] | None = None,
    groups: ParallelGroups | None = None,
    tied_embeddings: bool = False,
) -> list[TrainedParam]:
    """What there is to train, each parameter once, in the order of the models.

    Args:
        chunks: Models, or parameters by name. A tied parameter may come twice, its first name is
            kept.
        rule: Gives each parameter its key.
        layouts: How tensor parallelism cut each; None for whole parameters.
        groups: The groups of this process; None for a run of one process.
        tied_embeddings: The output layer of the last stage is a copy of the word embedding.

    Raises:
        ValueError: A parameter is not floating point, or does not have the shape of its layout.
    """
    found: dict[int, TrainedParam] = {}
    for chunk_idx, chunk in enumerate(chunks):
        named = chunk.named_parameters() if isinstance(chunk, nn.Module) else chunk.items()
        for name, param in named:
            if not param.requires_grad:
                continue
            known = found.get(id(param))
            if known is not None:
                if chunk_idx not in known.chunks:
                    found[id(param)] = replace(known, chunks=(*known.chunks, chunk_idx))
                continue
            layout = _layout(name, param, layouts)
            found[id(param)] = TrainedParam(
                name,
                param,
                rule(name, param),
                layout,
                counted=_is_counted(layout, groups),
                tied=_tied_group(layout, groups, tied_embeddings),
                chunks=(chunk_idx,),
            )
    return list(found.values())


def _layout(
    name: str, param: nn.Parameter, layouts: Mapping[str, ParamLayout] | None
) -> ParamLayout:
    if not param.is_floating_point():
        raise ValueError(f"parameter {name} has dtype {param.dtype}, expected floating point")
    if layouts is None:
        return ParamLayout(name=name, full_shape=tuple(param.shape))
    if name not in layouts:
        raise ValueError(f"parameter {name} has no layout")
    layout = layouts[name]
    if layout.local_shape != tuple(param.shape):
        raise ValueError(
            f"parameter {name} has shape {list(param.shape)}, by its layout it is "
            f"{list(layout.local_shape)}"
        )
    return layout


def _is_counted(layout: ParamLayout, groups: ParallelGroups | None) -> bool:
    if layout.is_copy:
        return False
    return groups is None or layout.is_sharded or groups.tp.is_first


def _tied_group(
    layout: ParamLayout, groups: ParallelGroups | None, tied_embeddings: bool
) -> Group | None:
    if groups is None:
        return None
    if layout.name == WORD_EMBEDDING and tied_embeddings and groups.embedding.size > 1:
        return groups.embedding
    if layout.name == POSITION_EMBEDDING and groups.position_embedding.size > 1:
        return groups.position_embedding
    return None

"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

VOCABULARY_WEIGHTS = ("word_embeddings.weight", "output_layer.weight")


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


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are updated together: one dtype, one key, in model order."""

    key: GroupKey
    dtype: torch.dtype
    names: tuple[str, ...]
    params: tuple[nn.Parameter, ...]


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


def split_parameters(
    named: Iterable[tuple[str, nn.Parameter]], rule: GroupRule
) -> list[ParamGroup]:
    """Trainable parameters by (dtype, key), each once, in a reproducible order.

    Args:
        named: Names and parameters; a tied parameter may come twice, its first name is kept.
        rule: Gives each parameter its key.

    Raises:
        ValueError: A parameter is not floating point, or has no memory yet (meta device).
    """
    members: dict[tuple[str, GroupKey], list[tuple[str, nn.Parameter]]] = {}
    seen: set[int] = set()
    for name, param in named:
        if not param.requires_grad or id(param) in seen:
            continue
        seen.add(id(param))
        if not param.is_floating_point():
            raise ValueError(f"parameter {name} has dtype {param.dtype}, expected floating point")
        if param.is_meta:
            raise ValueError(f"parameter {name} is on the meta device; materialise the model first")
        members.setdefault((str(param.dtype), rule(name, param)), []).append((name, param))
    return [
        ParamGroup(
            key=key,
            dtype=items[0][1].dtype,
            names=tuple(name for name, _ in items),
            params=tuple(param for _, param in items),
        )
        for (_, key), items in sorted(members.items(), key=lambda entry: entry[0])
    ]

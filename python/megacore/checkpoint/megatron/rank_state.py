"""What the file of one rank holds: the state of its stages and of its optimizer, to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint.megatron.buffers import stored_offsets
from megacore.checkpoint.megatron.names import (
    OUTPUT_WEIGHT,
    in_megatron_order,
    nested_legacy,
    renumbered,
    to_core,
    to_legacy,
)
from megacore.checkpoint.megatron.optimizer import HALF, MAIN_PARAM, group_of

CHECKPOINT_VERSION = 3.0

# Layers of Transformer Engine expect an entry for the state of FP8 recipes, which may be None.
_RECIPE_OWNERS = tuple(
    f"{layer}.weight" for layer in ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
)


@dataclass(frozen=True)
class RankParam:
    """A parameter of a rank.

    Attributes:
        name: Canonical name; a copy of the word embedding is the output weight.
        tensor: The part of it that the rank has.
        state: Kind of optimizer state -> tensor of the same shape.
        is_shared: Another stage has the same word embedding.
    """

    name: str
    tensor: Tensor
    state: Mapping[str, Tensor] = field(default_factory=dict)
    is_shared: bool = False


@dataclass(frozen=True)
class RankStage:
    """A stage of a rank.

    Attributes:
        first_layer: Its first layer in the whole model.
        params: Its parameters, in the order of Megatron-LM's modules.
    """

    first_layer: int
    params: tuple[RankParam, ...]

    @classmethod
    def of(cls, first_layer: int, params: Sequence[RankParam]) -> RankStage:
        """A stage of parameters in any order."""
        by_name = {param.name: param for param in params}
        return cls(first_layer, tuple(by_name[name] for name in in_megatron_order(by_name)))


@dataclass(frozen=True, kw_only=True)
class GroupConstants:
    """What Megatron-LM stores with each group of parameters.

    Attributes:
        lr: Learning rate now.
        weight_decay: Now.
        max_lr: Largest rate of the schedule.
        min_lr: Smallest rate of the schedule.
        decoupled_lr: Rate now of word embedding and output layer, None when it is not separate.
        decoupled_max_lr: Its largest value.
        decoupled_min_lr: Its smallest value.
        step: Updates done.
        more: Further constants of the optimizer: betas, eps, momentum.
    """

    lr: float
    weight_decay: float
    max_lr: float
    min_lr: float
    decoupled_lr: float | None = None
    decoupled_max_lr: float | None = None
    decoupled_min_lr: float | None = None
    step: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def of_group(self, *, no_decay: bool, decoupled: bool) -> dict[str, Any]:
        """The entry of a group, without its parameters."""
        multiplier = 0.0 if no_decay else 1.0
        return {
            "wd_mult": multiplier,
            "lr_mult": 1.0,
            "is_expert_parallel": False,
            "is_decoupled_lr": decoupled,
            "max_lr": self.decoupled_max_lr if decoupled else self.max_lr,
            "min_lr": self.decoupled_min_lr if decoupled else self.min_lr,
            "lr": self.decoupled_lr if decoupled else self.lr,
            "weight_decay": self.weight_decay * multiplier,
            **self.more,
            "step": self.step,
        }


def model_states(stages: Sequence[RankStage], *, fused_norms: bool = True) -> dict[str, Any]:
    """The models of a rank: "model", or "model0" and so on.

    Args:
        stages: In order.
        fused_norms: The layers are those of Transformer Engine, not local ones.
    """
    states = []
    for stage in stages:
        state: dict[str, Tensor | None] = {}
        for param in stage.params:
            name = renumbered(param.name, -stage.first_layer)
            state[to_core(name, fused_norms=fused_norms)] = param.tensor
            if fused_norms and name.endswith(_RECIPE_OWNERS):
                state[f"{name.removesuffix('weight')}_extra_state"] = None
        states.append(state)
    return _numbered(states)


def legacy_states(stages: Sequence[RankStage]) -> dict[str, Any]:
    """The models of a rank, as legacy ones.

    Raises:
        ValueError: A legacy model has no such parameter.
    """
    states = []
    for stage in stages:
        tensors, copy = {}, None
        for param in stage.params:
            if param.name == OUTPUT_WEIGHT and param.is_shared:
                copy = param.tensor
                continue
            name = to_legacy(renumbered(param.name, -stage.first_layer))
            if name is None:
                raise ValueError(f"a legacy model has no place for {param.name}")
            tensors[name] = param.tensor
        state = nested_legacy(tensors)
        if copy is not None:
            state["word_embeddings_for_head"] = {"weight": copy}
        states.append(state)
    return _numbered(states)


def _numbered(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(states) == 1:
        return {"model": states[0]}
    return {f"model{index}": state for index, state in enumerate(states)}


def grouped_optimizer(
    stages: Sequence[RankStage], constants: GroupConstants, scaler: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The state of a plain optimizer, numbered by groups.

    Args:
        stages: All stages of the rank.
        constants: What goes with each group.
        scaler: Loss scale; None for constant ones.
    """
    groups, state, mains, number = [], {}, [], 0
    for key, params in _groups(stages, constants).items():
        entry = constants.of_group(no_decay=key[0], decoupled=key[1])
        entry["params"] = list(range(number, number + len(params)))
        groups.append(entry)
        mains.append([p.state[MAIN_PARAM] for p in params if p.tensor.dtype in HALF])
        for param in params:
            state[number] = {kind: t for kind, t in param.state.items() if kind != MAIN_PARAM}
            number += 1
    inner: dict[str, Any] = {"state": state, "param_groups": groups}
    if not any(mains):
        return inner
    outer = {"optimizer": inner, "fp32_from_fp16_params": mains}
    return outer if scaler is None else {**outer, "grad_scaler": dict(scaler)}


def _groups(
    stages: Sequence[RankStage], constants: GroupConstants
) -> dict[tuple[bool, bool], list[RankParam]]:
    groups: dict[tuple[bool, bool], list[RankParam]] = {}
    decoupled = constants.decoupled_max_lr is not None
    for param in (param for stage in stages for param in stage.params):
        key = group_of(param.name, param.tensor.ndim, decoupled=decoupled)
        groups.setdefault(key, []).append(param)
    return groups


def distributed_optimizer(
    stages: Sequence[RankStage], constants: GroupConstants, scaler: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The entry of a distributed optimizer in the file of the rank; `flat_buffers` has the rest."""
    groups = [
        constants.of_group(no_decay=key[0], decoupled=key[1]) for key in _groups(stages, constants)
    ]
    outer: dict[str, Any] = {"optimizer": {"param_groups": groups}}
    return outer if scaler is None else {**outer, "grad_scaler": dict(scaler)}


def flat_buffers(
    stages: Sequence[RankStage],
    grad_dtypes: Mapping[torch.dtype, torch.dtype],
    *,
    shards: int,
    bucket_sizes: Sequence[int | None],
) -> dict[Any, Any]:
    """The file of a distributed optimizer: fp32 parameters and moments in flat buffers.

    Args:
        stages: All stages of the rank.
        grad_dtypes: Dtype of parameters -> dtype of their gradients.
        shards: Processes that share the optimizer.
        bucket_sizes: For each stage the elements of a bucket that is full, None for no limit.
    """
    stored: dict[Any, Any] = {"buckets_coalesced": True}
    number = 0
    for stage, bucket_size in zip(stages, bucket_sizes, strict=True):
        for dtype, params in _by_dtype(stage):
            offsets, total = stored_offsets(
                [param.tensor.numel() for param in params],
                [param.is_shared for param in params],
                shards=shards,
                bucket_size=bucket_size,
            )
            buffer: dict[str, Any] = {}
            for key, kind in (("param", MAIN_PARAM), ("exp_avg",) * 2, ("exp_avg_sq",) * 2):
                vector = torch.zeros(total, dtype=torch.float32)
                for param, offset in zip(params, offsets, strict=True):
                    values = param.state.get(kind, param.tensor)
                    vector[offset : offset + values.numel()].copy_(values.reshape(-1))
                buffer[key] = vector
            buffer["numel_unpadded"] = total
            stored[number] = {(dtype, grad_dtypes.get(dtype, dtype)): buffer}
            number += 1
    return stored


def _by_dtype(stage: RankStage) -> Iterator[tuple[torch.dtype, list[RankParam]]]:
    """The parameters of each buffer of a stage, in its order."""
    found: dict[torch.dtype, list[RankParam]] = {}
    for param in stage.params:
        found.setdefault(param.tensor.dtype, []).append(param)
    for dtype, params in found.items():
        yield dtype, params[::-1]

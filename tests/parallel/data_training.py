"""A small GPT trained for a few steps by some replicas, for comparison with one process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.optim import Optimizer, Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group, ParallelGroups, single_process_groups

VOCABULARY, LENGTH, GLOBAL_BATCH, MICROBATCHES = 53, 7, 24, 2

# The gradient of the bias of the keys is nothing but rounding (softmax does not see it), which
# Adam with a tiny epsilon would turn into steps of the size of the others.
OPTIMIZER: dict[str, Any] = {"weight_decay": 0.1, "clip_grad": 0.5, "adam_eps": 1e-6}


@dataclass(frozen=True)
class Case:
    """How a model is trained."""

    dtype: torch.dtype = torch.float64
    parallel: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    recompute: RecomputeConfig | None = None
    steps: int = 5
    frozen: str | None = None
    per_token: bool = False
    announce: bool = True
    poison: tuple[int, int] | None = None  # (step, rank) whose gradient becomes infinite


@dataclass
class Result:
    """What training gave on one process."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    zeros: list[int | None] = field(default_factory=list)
    updated: list[bool] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    grads: dict[str, Tensor] = field(default_factory=dict)  # of the first step
    params: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    params_norm: float = 0.0


def data_parallel_groups(group: Group | None, **others: Group) -> ParallelGroups:
    """Groups of a run in which all processes are replicas."""
    groups = single_process_groups()
    if group is None:
        return groups
    return replace(groups, world=group, dp=group, dp_cp=group, **others)


def build_model(case: Case) -> GPTModel:
    sizes: dict[str, Any] = {
        "num_layers": 3,
        "hidden_size": 20,
        "num_attention_heads": 2,
        "ffn_hidden_size": 36,
        "max_position_embeddings": 9,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": 0.2,
    }
    config = ModelConfig(**sizes | case.model).resolved()
    model = GPTModel(
        config, padded_vocab_size=VOCABULARY, recompute=case.recompute, dtype=case.dtype
    )
    init_weights(model, config, seed=7)
    for name, param in model.named_parameters():
        if case.frozen is not None and case.frozen in name:
            param.requires_grad_(False)
    return model


def build(case: Case, group: Group | None, **others: Group) -> tuple[GPTModel, Optimizer]:
    model = build_model(case)
    optimizer = build_optimizer(
        [model],
        optimizer=OptimizerConfig(**OPTIMIZER | case.optimizer),
        precision=PrecisionConfig(**case.precision),
        groups=data_parallel_groups(group, **others),
        parallel=ParallelConfig(world_size=1 if group is None else group.size, **case.parallel),
        average_gradients=not case.per_token,
    )
    return model, optimizer


def microbatches(step: int, rank: int, size: int) -> list[Tensor]:
    """The tokens of one process: its part of the same global batch, [b, LENGTH + 1] each."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    return list(tokens.view(MICROBATCHES, size, -1, LENGTH + 1)[:, rank])


def gradients(optimizer: Optimizer, group: Group | None) -> dict[str, Tensor]:
    """All gradients after reduction, gathered from the processes that share them."""
    found = {}
    for bucket in optimizer.buckets:
        whole = bucket.main_grad
        if group is not None and bucket.main.numel() < bucket.size:
            whole = bucket.main_grad.new_empty(bucket.size)
            group.all_gather(whole, bucket.main_grad)
        found.update({param.name: view.clone() for param, view in bucket.views(whole)})
    return found


def train(
    group: Group | None,
    case: Case,
    *,
    start: tuple[GPTModel, Optimizer, int] | None = None,
    groups: dict[str, Group] | None = None,
) -> Result:
    """Trains from the first step, or goes on with a model and optimizer from a later one."""
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    model, optimizer, first = start or (*build(case, group, **(groups or {})), 0)
    shard = (groups or {}).get("shard", group)
    result = Result()
    for step in range(first, case.steps):
        optimizer.zero_grad()
        for index, tokens in enumerate(microbatches(step, rank, size)):
            losses = model(tokens[:, :-1], labels=tokens[:, 1:])
            loss = losses.sum() if case.per_token else losses.mean() / MICROBATCHES
            if case.poison == (step, rank):
                loss = loss * torch.inf
            if case.announce and index == MICROBATCHES - 1:
                optimizer.last_microbatch(0)
            optimizer.backward(loss)
            result.losses.append(loss.detach())
        if case.announce:
            # As a pipeline does, which knows that nothing comes any more.
            for param in model.parameters():
                optimizer.ready(param)
        optimizer.finish_gradients()
        if step == 0:
            result.grads = gradients(optimizer, shard)
        divisor = GLOBAL_BATCH * LENGTH if case.per_token else 1.0
        done = optimizer.step(Rates(0.01, 0.1), grad_divisor=divisor, count_zero_grads=True)
        result.norms.append(done.grad_norm)
        result.zeros.append(done.num_zeros)
        result.updated.append(done.updated)
        result.scales.append(optimizer.loss_scale)
    result.params_norm = optimizer.params_norm()
    result.state = {name: tensor.clone() for name, tensor in optimizer.gather_state()}
    optimizer.finish_params()
    result.params = {n: p.detach().clone() for n, p in model.named_parameters()}
    return result

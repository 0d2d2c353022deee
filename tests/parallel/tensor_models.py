"""Models of awkward sizes that 2 and 4 processes can split, and one training step of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout, full_tensor
from megacore.parallel.linear import OVERLAP, Overlap
from megacore.parallel.random_streams import tensor_stream
from megacore.parallel.recompute import apply_random_streams
from megacore.parallel.tensor import apply_tensor_parallel
from megacore.testing.random_vectors import randomize_vectors

VOCAB, PADDED_VOCAB, BATCH, LENGTH = 101, 132, 3, 24

SIZES: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 60,
    "num_attention_heads": 8,
    "kv_channels": 14,
    "ffn_hidden_size": 76,
    "max_position_embeddings": 29,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "init_method_std": 0.2,
}
ROTARY = {
    "position_embedding_type": "rope",
    "group_query_attention": True,
    "num_query_groups": 4,
    "normalization": "RMSNorm",
    "swiglu": True,
    "qk_layernorm": True,
    "untie_embeddings_and_output_weights": True,
}


@dataclass(frozen=True)
class Case:
    """One model and one way to run a step of it."""

    model: dict[str, Any] = field(default_factory=dict)
    recompute: dict[str, Any] = field(default_factory=dict)
    documents: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float64
    sequence_parallel: bool = False
    overlap: Overlap = OVERLAP
    slices: bool = False
    batch_size: int = BATCH
    in_half: bool = False


@dataclass
class Step:
    """What a training step gave on one process."""

    losses: Tensor
    grads: dict[str, Tensor]
    layouts: dict[str, ParamLayout]


def build(case: Case, device: str | None = None) -> tuple[GPTModel, ModelConfig]:
    config = ModelConfig(**SIZES | case.model)
    model = GPTModel(
        config,
        padded_vocab_size=PADDED_VOCAB,
        recompute=RecomputeConfig(**case.recompute),
        dtype=case.dtype,
        device=device,
        fp16_lm_cross_entropy=case.in_half,
    )
    return model, config


def whole_model(case: Case, seed: int = 5) -> GPTModel:
    """The model in one process, with random norms and biases too."""
    model, config = build(case)
    init_weights(model, config, seed=seed)
    randomize_vectors(model, seed=seed)
    return model


def split_model(case: Case, group: Group) -> tuple[GPTModel, dict[str, ParamLayout]]:
    """This process's part of `whole_model`."""
    model, _ = build(case, "meta")
    layouts = apply_tensor_parallel(
        model, group, sequence_parallel=case.sequence_parallel, overlap=case.overlap
    )
    model.to_empty(device="cpu")
    full = dict(whole_model(case).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(layouts[name].local(full[name]))
    apply_random_streams(
        model,
        tensor_stream(7, group.rank, torch.device("cpu")),
        every_dropout=case.sequence_parallel,
        slices=group if case.slices else None,
    )
    return model, layouts


def run_step(model: GPTModel, case: Case) -> Tensor:
    """Losses of a batch, after their masked mean was sent backward."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, case.batch_size, LENGTH)
    tokens, labels = torch.randint(0, VOCAB, shape, generator=generator)
    mask = torch.rand(shape[1:], generator=generator, dtype=torch.float64) < 0.8
    ends = None
    if case.documents is not None:
        ends = torch.tensor([0, *case.documents], dtype=torch.int32).cumsum(0)
    torch.manual_seed(11)
    losses = model(tokens, labels=labels, cu_seqlens=ends)
    (losses * mask).sum().div(mask.sum()).backward()
    return losses.detach()


def single_step(
    case: Case, rounded: torch.dtype = torch.float64
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of one process, with weights that are `rounded` to a dtype."""
    model = whole_model(case)
    with torch.no_grad():
        for parameter, low in zip(
            model.parameters(),
            whole_model(replace(case, dtype=rounded)).parameters(),
            strict=True,
        ):
            parameter.copy_(low)
    losses = run_step(model, case)
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def reduce_partial_grads(
    grads: dict[str, Tensor], layouts: dict[str, ParamLayout], group: Group
) -> None:
    """Sum, in place, the gradients of which each process computed a part, as the optimizer does."""
    for name, grad in grads.items():
        if layouts[name].partial_grad:
            group.all_reduce(grad)


def split_step(group: Group, case: Case) -> Step:
    """The same step on one of the processes of a group."""
    model, layouts = split_model(case, group)
    losses = run_step(model, case)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    reduce_partial_grads(grads, layouts, group)
    return Step(losses, grads, layouts)


def gathered(steps: list[Step]) -> dict[str, Tensor]:
    """Whole gradients; those that every process has must be bitwise equal."""
    grads = {}
    for name, grad in steps[0].grads.items():
        layouts = [step.layouts[name] for step in steps]
        if layouts[0].is_sharded:
            grads[name] = full_tensor(layouts, [step.grads[name] for step in steps])
        else:
            assert all(torch.equal(grad, step.grads[name]) for step in steps), name
            grads[name] = grad
    return grads

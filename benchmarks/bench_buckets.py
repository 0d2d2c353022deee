"""Gradient buckets: what summing gradients during backward hides, by size of the buckets.

python benchmarks/bench_buckets.py [--processes 2] [--link 0.2,1] [--layers 8] [--hidden 512]

One training step (forward, backward, clip, AdamW) of a GPT whose replicas sum their gradients, in
two settings:

* link: one of so many replicas, alone, on a simulated link (see link.py). "exposed" is what the
  process waits.
* gloo: that many processes of this machine, which share its cores with Gloo's own threads; the
  peer is torch.nn.parallel.DistributedDataParallel with the fused AdamW of torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from forms import gloo_table
from link import Link, LinkGroup, print_form, print_title
from torch import Tensor, nn

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group, single_process_groups

VOCAB = 4096
OVERLAP = {"overlap_grad_reduce": True}
SHARDED = {"use_distributed_optimizer": True}
# Name -> settings of data parallelism. A bucket size counts elements.
FORMS: dict[str, dict[str, Any]] = {
    "all-reduce after backward": {},
    "all-reduce in backward, default buckets": OVERLAP,
    "all-reduce in backward, buckets of 8 M": {**OVERLAP, "ddp_bucket_size": 8_000_000},
    "all-reduce in backward, buckets of 2 M": {**OVERLAP, "ddp_bucket_size": 2_000_000},
    "all-reduce in backward, buckets of 0.5 M": {**OVERLAP, "ddp_bucket_size": 500_000},
    "sharded optimizer after backward": SHARDED,
    "sharded, reduce in backward, 2 M": {**SHARDED, **OVERLAP, "ddp_bucket_size": 2_000_000},
    "sharded, gather in forward too, 2 M": {
        **SHARDED,
        **OVERLAP,
        "overlap_param_gather": True,
        "ddp_bucket_size": 2_000_000,
    },
}


def build_model(args: argparse.Namespace) -> GPTModel:
    config = ModelConfig(
        num_layers=args.layers,
        hidden_size=args.hidden,
        num_attention_heads=8,
        max_position_embeddings=args.length,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    ).resolved()
    model = GPTModel(config, padded_vocab_size=VOCAB, dtype=torch.float32)
    init_weights(model, config, seed=1)
    return model


def build_step(args: argparse.Namespace, group: Group, form: dict[str, Any]) -> Callable[[], None]:
    model = build_model(args)
    groups = replace(single_process_groups(), world=group, dp=group, dp_cp=group)
    optimizer = build_optimizer(
        model,
        optimizer=OptimizerConfig(),
        precision=PrecisionConfig(),
        groups=groups,
        parallel=ParallelConfig(world_size=group.size, **form),
    )
    tokens = torch.randint(0, VOCAB, (1, args.length))

    def step() -> None:
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).mean()
        optimizer.last_microbatch(0)
        optimizer.backward(loss)
        optimizer.finish_gradients()
        optimizer.step(Rates(1e-4, 0.01))

    return step


class _Loss(nn.Module):
    """The loss as the forward pass, as DistributedDataParallel wants it."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.model(tokens, labels=tokens).mean()
        return loss


def peer_step(args: argparse.Namespace, group: Group) -> Callable[[], None]:
    module = nn.parallel.DistributedDataParallel(
        _Loss(build_model(args)), process_group=group.process_group, gradient_as_bucket_view=True
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    tokens = torch.randint(0, VOCAB, (1, args.length))

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        module(tokens).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def link_table(args: argparse.Namespace, speed: float) -> None:
    print_title(speed, args.processes)
    for name, form in FORMS.items():
        link = Link(speed * 1e9)
        group = LinkGroup("dp", tuple(range(args.processes)), link=link)
        print_form(name, link, build_step(args, group, form), args.repeats)


def gloo_steps(args: argparse.Namespace, group: Group) -> dict[str, Callable[[], None]]:
    steps = {name: build_step(args, group, form) for name, form in FORMS.items()}
    return {**steps, "torch DistributedDataParallel": peer_step(args, group)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--link", default="0.2,1", help="GB/s of simulated links")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parameters = sum(p.numel() for p in build_model(args).parameters())
    print(
        f"{args.layers} layers, hidden {args.hidden}, {args.length} tokens, float32, {parameters}"
    )
    for speed in args.link.split(","):
        link_table(args, float(speed))
    gloo_table(args, gloo_steps)


if __name__ == "__main__":
    main()

"""Tensor-parallel communication beside products: what each form of overlap hides.

python benchmarks/bench_overlap.py [--processes 2] [--link 0.1,0.4] [--hidden 1024] [--length 1024]

One training step (forward and backward) of a small GPT, in two settings:

* link: one of so many processes, alone, on a simulated link (see link.py). "exposed" is what the
  process waits.
* gloo: that many processes of this machine, which share its cores with Gloo's own threads.

An H100 multiplies about 1,300 bf16 operations in the time in which its NVLink moves a byte; for
one CPU core in float32 that is a link of about 0.1 GB/s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from forms import gloo_table
from link import Link, LinkGroup, print_form, print_title

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.parallel.groups import Group
from megacore.parallel.linear import Overlap
from megacore.parallel.tensor import apply_tensor_parallel

VOCAB = 1024
NOTHING = Overlap(reduce_input_grad=False, gather_input=False)
# Name -> sequence parallelism, overlap.
FORMS = {
    "tp, nothing overlapped": (False, NOTHING),
    "tp, input gradients reduced in background": (False, Overlap()),
    "sp, nothing overlapped": (True, NOTHING),
    "sp, whole collectives in background": (True, Overlap()),
    "sp, and gathers in pieces": (True, Overlap(gather_pieces=True)),
    "sp, and scatters in pieces": (True, Overlap(scatter_pieces=True)),
    "sp, and both": (True, Overlap(gather_pieces=True, scatter_pieces=True)),
    "sp, and both, input gradients too": (
        True,
        Overlap(gather_pieces=True, scatter_pieces=True, scatter_grad_pieces=True),
    ),
}


def build_step(
    args: argparse.Namespace, group: Group, sequence: bool, overlap: Overlap
) -> Callable[[], None]:
    config = ModelConfig(
        num_layers=args.layers,
        hidden_size=args.hidden,
        num_attention_heads=16,
        max_position_embeddings=args.length,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    model = GPTModel(config, padded_vocab_size=VOCAB, dtype=torch.float32, device="meta")
    layouts = apply_tensor_parallel(model, group, sequence_parallel=sequence, overlap=overlap)
    model.to_empty(device="cpu")
    init_weights(model, config, seed=1, cuts=layouts)
    tokens = torch.randint(0, VOCAB, (1, args.length))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens, labels=tokens).mean().backward()

    return step


def link_table(args: argparse.Namespace, speed: float) -> None:
    print_title(speed, args.processes)
    for name, form in FORMS.items():
        link = Link(speed * 1e9)
        group = LinkGroup("tp", tuple(range(args.processes)), link=link)
        print_form(name, link, build_step(args, group, *form), args.repeats)


def gloo_steps(args: argparse.Namespace, group: Group) -> dict[str, Callable[[], None]]:
    return {name: build_step(args, group, *form) for name, form in FORMS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--link", default="0.1,0.4", help="GB/s of simulated links")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.layers} layers, hidden {args.hidden}, {args.length} tokens, float32")
    for speed in args.link.split(","):
        link_table(args, float(speed))
    gloo_table(args, gloo_steps)


if __name__ == "__main__":
    main()

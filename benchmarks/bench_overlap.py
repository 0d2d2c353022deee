"""Tensor-parallel communication beside products: what each form of overlap hides.

python benchmarks/bench_overlap.py [--processes 2] [--link 0.1,0.4] [--hidden 1024] [--length 1024]

One training step (forward and backward) of a small GPT, in two settings:

* link: one of so many processes, alone, on a clock of its own. The clock counts processor seconds
  of the process, and the collectives, which move nothing, are over when a link of the given GB/s
  would be done; all transfers go through it one after the other. "exposed" is what the process
  waits. Other work on the machine does not count, and neither does the time to copy data.
* gloo: that many processes of this machine, which share its cores with Gloo's own threads.

An H100 multiplies about 1,300 bf16 operations in the time in which its NVLink moves a byte; for
one CPU core in float32 that is a link of about 0.1 GB/s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from forms import gloo_table
from torch import Tensor

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


@dataclass
class Link:
    """A link and the clock of its process.

    Attributes:
        bytes_per_second: Speed.
        waited: Seconds that the process has waited for transfers.
        carried: Seconds of transfers.
        free_at: When the last transfer is over.
    """

    bytes_per_second: float
    waited: float = 0.0
    carried: float = 0.0
    free_at: float = 0.0

    def now(self) -> float:
        return time.process_time() + self.waited

    def start(self, num_bytes: float, async_op: bool) -> LinkWork:
        seconds = num_bytes / self.bytes_per_second
        self.carried += seconds
        self.free_at = max(self.free_at, self.now()) + seconds
        work = LinkWork(self, self.free_at)
        if not async_op:
            work.wait()
        return work


@dataclass
class LinkWork:
    """A transfer that is over at a given time."""

    link: Link
    end: float

    def wait(self) -> None:
        self.link.waited += max(0.0, self.end - self.link.now())


@dataclass(frozen=True, eq=False)
class LinkGroup(Group):
    """A group whose collectives take time on a link and do nothing."""

    link: Link = field(default_factory=lambda: Link(1e9))

    def all_reduce(self, x: Tensor, op: str = "sum", async_op: bool = False) -> LinkWork:
        return self.link.start(2 * x.nbytes * (self.size - 1) / self.size, async_op)

    def all_gather(self, out: Tensor, x: Tensor, async_op: bool = False) -> LinkWork:
        return self.link.start(x.nbytes * (self.size - 1), async_op)

    def reduce_scatter(
        self, out: Tensor, x: Tensor, op: str = "sum", async_op: bool = False
    ) -> LinkWork:
        return self.link.start(out.nbytes * (self.size - 1), async_op)


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
    print(f"\nlink of {speed:g} GB/s, one of {args.processes} processes, ms")
    print(f"{'':45s} {'processor':>9s} {'transfers':>9s} {'exposed':>8s} {'hidden':>7s}")
    for name, form in FORMS.items():
        link = Link(speed * 1e9)
        step = build_step(args, LinkGroup("tp", tuple(range(args.processes)), link=link), *form)
        step()
        rows = []
        for _ in range(args.repeats):
            link.waited = link.carried = link.free_at = 0.0
            start = time.process_time()
            step()
            rows.append((time.process_time() - start, link.carried, link.waited))
        columns = zip(*rows, strict=True)
        busy, carried, waited = (statistics.median(column) * 1e3 for column in columns)
        hidden = 100.0 * (1.0 - waited / carried)
        print(f"{name:45s} {busy:9.1f} {carried:9.1f} {waited:8.1f} {hidden:6.0f}%")


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

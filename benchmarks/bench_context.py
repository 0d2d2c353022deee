"""Attention of sequences cut among processes: ring, exchange of heads, and gathering all keys.

python benchmarks/bench_context.py [--processes 4] [--link 1,4] [--length 8192] [--heads 8]

Forward and backward of one attention layer, without the products around it, in two settings:

* link: one of so many processes, alone, whose transfers take the time that a link of the given
  GB/s would need and no processor (results are garbage, times are not);
* gloo: two processes of this machine, which also have to share its cores with Gloo.

"ring, waiting" waits for each transfer before it computes. The peer "gathered" gathers the keys and
values of all processes, attends, and scatters their gradients. "Exposed" is the time spent waiting
for the link. Memory is what the layer needs at most besides q, k, v and their gradients. All rows
are taken in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from forms import gloo_table, medians
from torch import Tensor

from megacore.layers.attention_block import (
    attention_block,
    attention_block_backward,
    merge_block,
)
from megacore.layers.core_attention import causal_attention
from megacore.parallel.context_exchange import gather_heads, gather_tokens
from megacore.parallel.context_plan import ring_plan, whole_sequence
from megacore.parallel.context_ring import Ring, ring_attention
from megacore.parallel.groups import DONE, Group
from megacore.planning.measure import Meter

Attend = Callable[[Tensor, Tensor, Tensor, Group], Tensor]


@dataclass
class Link:
    """What all transfers of a process share.

    Attributes:
        gigabytes_per_second: Its speed.
        busy_until: When it is free again.
        waited: Seconds that the process waited for it.
    """

    gigabytes_per_second: float
    busy_until: float = 0.0
    waited: float = 0.0


class LinkWork:
    """A transfer that is over at a given time."""

    def __init__(self, link: Link, end: float) -> None:
        self.link, self.end = link, end

    def wait(self) -> None:
        start = time.perf_counter()
        if self.end > start:
            time.sleep(self.end - start)
            self.link.waited += time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class LinkGroup(Group):
    """A group whose transfers take time and do nothing."""

    link: Link = field(default_factory=lambda: Link(1e9))

    def _start(
        self, operation: str, tensor: Tensor | None, async_op: bool, method: str, *arguments: Any
    ) -> Any:
        assert tensor is not None
        share = {"all_gather": self.size - 1.0, "reduce_scatter": (self.size - 1) / self.size}
        ring = operation == "all_to_all" and bool(arguments[-1])
        sent = tensor.nbytes * (1.0 if ring else share.get(operation, share["reduce_scatter"]))
        link = self.link
        start = max(time.perf_counter(), link.busy_until)
        link.busy_until = start + sent / (link.gigabytes_per_second * 1e9)
        work = LinkWork(link, link.busy_until)
        if not async_op:
            work.wait()
        return work


@dataclass(frozen=True, eq=False)
class WaitingGroup(Group):
    """Another group without anything in the background."""

    inner: Group = field(default_factory=lambda: Group("none"))

    def all_to_all(self, out: Tensor, x: Tensor, *splits: Any, async_op: bool = False) -> Any:
        self.inner.all_to_all(out, x, *splits, async_op=True).wait()
        return DONE


def ring(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    plan = ring_plan(batch_size=q.shape[0], length=q.shape[1], rank=group.rank, size=group.size)
    return ring_attention(q, k, v, Ring(group=group, plan=plan))


def waiting_ring(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    return ring(q, k, v, WaitingGroup("cp", group.ranks, group.rank, inner=group))


def exchange(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    inner = causal_attention(*gather_tokens(q, k, v, group))
    return gather_heads(inner, k.shape[2], group).view(q.shape)


class _Gathered(torch.autograd.Function):
    """Each of the two chunks attends to all keys before it, and causally to its own."""

    @staticmethod
    def blocks(q: Tensor, group: Group) -> Sequence[tuple[slice, slice, bool]]:
        chunk = q.shape[1] // 2
        found = []
        for local, index in ((0, group.rank), (chunk, 2 * group.size - 1 - group.rank)):
            here, start = slice(local, local + chunk), index * chunk
            found.append((here, slice(start, start + chunk), True))
            if start:
                found.append((here, slice(0, start), False))
        return found

    @staticmethod
    def all_keys(k: Tensor, v: Tensor, group: Group) -> Tensor:
        pair = torch.stack([k, v], dim=-1)
        parts = torch.empty(group.size, *pair.shape, dtype=pair.dtype, device=pair.device)
        group.all_gather(parts.flatten(0, 1), pair)
        return whole_sequence(parts)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        pair = _Gathered.all_keys(k, v, group)
        out, log_sum = torch.empty_like(q), torch.empty(q.shape[:-1], device=q.device)
        for here, keys, causal in _Gathered.blocks(q, group):
            block = attention_block(q[:, here], *pair[:, keys].unbind(-1), causal=causal)
            if causal:
                out[:, here], log_sum[:, here] = block
            else:
                merge_block(out[:, here], log_sum[:, here], block)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sum = ctx.saved_tensors
        pair = _Gathered.all_keys(k, v, ctx.group)
        d_pair, d_q = torch.zeros_like(pair), torch.zeros_like(q)
        for here, keys, causal in _Gathered.blocks(q, ctx.group):
            local = (x[:, here] for x in (grads[0], q))
            kept = (x[:, here] for x in (out, log_sum))
            parts = attention_block_backward(
                *local, *pair[:, keys].unbind(-1), *kept, causal=causal
            )
            d_q[:, here] += parts[0]
            d_pair[:, keys] += torch.stack(parts[1:], dim=-1)
        own = torch.empty_like(d_pair[:, : q.shape[1]])
        by_rank = d_pair.unflatten(1, (ctx.group.size, -1)).transpose(0, 1).contiguous()
        ctx.group.reduce_scatter(own, by_rank.flatten(0, 1))
        return d_q, *own.unbind(-1), None


def gathered(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    return _Gathered.apply(q, k, v, group)


FORMS: dict[str, Attend] = {
    "ring": ring,
    "ring, waiting": waiting_ring,
    "heads exchanged": exchange,
    "gathered": gathered,
}


def step_of(args: argparse.Namespace, attend: Attend, group: Group) -> Callable[[], None]:
    shape = (1, args.length // args.processes, args.groups)
    q = torch.randn(*shape, args.heads // args.groups, args.width)
    k, v = (torch.randn(*shape, args.width) for _ in range(2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    grad = torch.randn_like(q)

    def step() -> None:
        attend(*leaves, group).backward(grad)

    return step


def link_table(args: argparse.Namespace, speed: float) -> None:
    print(f"\nlink of {speed:g} GB/s, last of {args.processes} processes: ms, exposed ms, MiB")
    links, steps, memory = {}, {}, {}
    for name, attend in FORMS.items():
        links[name] = Link(speed)
        ranks = tuple(range(args.processes))
        group = LinkGroup("cp", ranks, args.processes - 1, link=links[name])
        steps[name] = step_of(args, attend, group)
        # Its first step makes no tensor that stays.
        meter = Meter()
        with meter, meter.measure() as use:
            steps[name]()
        memory[name] = use.peak_bytes / 2**20
        links[name].waited = 0.0
    found = medians(steps, args.repeats)
    for name, value in found.items():
        exposed = links[name].waited / (args.repeats + 1) * 1e3
        print(f"{name:20s} {value:8.1f} {exposed:8.1f} {memory[name]:8.1f}")


def gloo_steps(args: argparse.Namespace, group: Group) -> dict[str, Callable[[], None]]:
    return {name: step_of(args, form, group) for name, form in FORMS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--link", default="1,4", help="GB/s of simulated links")
    parser.add_argument("--length", type=int, default=8192, help="tokens of the whole sequence")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=8, help="key/value heads")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{args.length} tokens, {args.heads} heads of {args.width}, {args.groups} groups, float32"
    )
    for speed in args.link.split(","):
        link_table(args, float(speed))
    args.processes = 2
    gloo_table(args, gloo_steps)


if __name__ == "__main__":
    main()

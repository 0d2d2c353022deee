"""Pipelines over processes, against one process that runs the same stages one after the other."""

from __future__ import annotations

import datetime
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, ProcessGroupGloo
from torch.distributed.distributed_c10d import _get_default_store
from worker_pool import WorkerPools

from megacore._C import pipeline as core
from megacore.errors import CommunicationError, UsageError
from megacore.parallel.groups import Group
from megacore.parallel.p2p import PipelineTransport, TensorSpec, channel_groups
from megacore.parallel.pipeline import PipelineHooks, PipelineRunner
from megacore.parallel.weight_grad import WeightGradStore, linear

HIDDEN = 6


class Block(nn.Module):
    """A stage with all kinds of parameters: norm, bias, weights, one weight used twice."""

    def __init__(self, stage: int, store: WeightGradStore) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(linear(self.norm(x), self.up.weight, self.up.bias, self.store))
        return x + linear(y, self.down.weight, None, self.store)


def length_of(microbatch: int, variable: bool) -> int:
    return 2 + microbatch % 3 if variable else 4


class Stages:
    """The stages that live on one rank (all of them by default) as functions."""

    def __init__(
        self, placement: Any, rank: int | None, dtype: torch.dtype, variable: bool = False
    ) -> None:
        self.placement = placement
        self.variable = variable
        self.dtype = dtype
        self.ready: list[str] = []
        names: dict[int, str] = {}
        self.store = WeightGradStore(lambda param: self.ready.append(names[id(param)]))
        stages = range(placement.num_stages) if rank is None else placement.stages_of(rank)
        self.blocks = {stage: Block(stage, self.store).to(dtype) for stage in stages}
        for name, param in self.parameters():
            names[id(param)] = name

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{stage}.{name}", param)
            for stage, block in self.blocks.items()
            for name, param in block.named_parameters()
        ]

    def run(self, stage: int, microbatch: int, x: Tensor | None) -> Tensor:
        if x is None:
            generator = torch.Generator().manual_seed(microbatch)
            shape = (length_of(microbatch, self.variable), 3, HIDDEN)
            x = torch.randn(shape, generator=generator, dtype=self.dtype)
        y = self.blocks[stage](x)
        return y.square().mean() if self.placement.is_last(stage) else y

    def functions(self) -> dict[int, Callable[[int, Tensor | None], Tensor]]:
        def bind(stage: int) -> Callable[[int, Tensor | None], Tensor]:
            return lambda microbatch, x: self.run(stage, microbatch, x)

        return {stage: bind(stage) for stage in self.blocks}


def serial(
    schedule: Any, dtype: torch.dtype, variable: bool
) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Outputs by microbatch and gradients by name of one process."""
    stages = Stages(schedule.placement, None, dtype, variable)
    outputs: dict[int, Tensor] = {}
    first = 0
    for chain, (begin, count) in zip(
        schedule.placement.chains, schedule.placement.microbatches, strict=True
    ):
        for microbatch in range(begin, begin + count):
            x: Tensor | None = None
            for stage in range(first, first + len(chain)):
                x = stages.run(stage, microbatch, x)
            assert x is not None
            x.backward()
            outputs[microbatch] = x.detach()
        first += len(chain)
    return outputs, gradients(stages)


def gradients(stages: Stages) -> dict[str, Tensor]:
    return {name: p.grad for name, p in stages.parameters() if p.grad is not None}


def make(name: str, num_ranks: int, num_microbatches: int) -> Any:
    schedule = core.make_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    return core.add_communication(schedule)


def make_group(name: str, ranks: tuple[int, ...]) -> Group:
    store = PrefixStore(name, _get_default_store())
    rank = ranks.index(torch.distributed.get_rank())
    timeout = datetime.timedelta(seconds=20)
    return Group(name, ranks, rank, ProcessGroupGloo(store, rank, len(ranks), timeout))


def train(
    group: Group,
    name: str,
    num_microbatches: int,
    dtype: torch.dtype,
    variable: bool = False,
    own_channels: bool = False,
    num_runs: int = 1,
) -> tuple[dict[int, Tensor], dict[str, Tensor], list[str]]:
    schedule = make(name, group.size, num_microbatches)
    stages = Stages(schedule.placement, group.rank, dtype, variable)
    spec = TensorSpec((length_of(0, False), 3, HIDDEN), dtype)
    channels = None
    if own_channels:
        pairs = [(a, b) for a in range(group.size) for b in range(group.size) if abs(a - b) == 1]
        channels = channel_groups(pairs, group, make_group)
    transport = PipelineTransport(
        group, schedule.placement.num_stages, spec, variable=variable, channels=channels
    )
    runner = PipelineRunner(schedule, group.rank, stages.functions(), transport, store=stages.store)
    for _ in range(num_runs):
        for _, param in stages.parameters():
            param.grad = None
        run = runner.run()
    assert len(stages.store) == 0
    return run.outputs, gradients(stages), stages.ready


def merge(results: list[Any]) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    outputs: dict[int, Tensor] = {}
    grads: dict[str, Tensor] = {}
    for result in results:
        outputs |= result[0]
        grads |= result[1]
    return outputs, grads


def expect_close(found: dict[Any, Tensor], wanted: dict[Any, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for key, x in wanted.items():
        error = (found[key].double() - x.double()).norm() / x.double().norm()
        assert error <= tolerance, (key, float(error))


# Prime counts, and fewer microbatches than ranks where the schedule takes them.
CASES = [
    ("gpipe", 4, 3),
    ("1f1b", 2, 1),
    ("1f1b", 4, 7),
    ("interleaved", 2, 5),
    ("interleaved", 4, 8),
    ("zb-h1", 4, 7),
    ("zb-h2", 4, 7),
    ("zb-v", 2, 5),
    ("zb-v", 4, 9),
    ("v-half", 4, 5),
    ("v-min", 4, 5),
    ("dualpipe", 4, 10),
    ("dualpipev", 4, 9),
]


@pytest.mark.parametrize(("name", "num_ranks", "num_microbatches"), CASES)
def test_equals_one_process(
    world: WorkerPools, name: str, num_ranks: int, num_microbatches: int
) -> None:
    schedule = make(name, num_ranks, num_microbatches)
    outputs, grads = serial(schedule, torch.float64, False)
    results = world(num_ranks).run(train, name, num_microbatches, torch.float64)
    found, found_grads = merge(results)
    expect_close(found, outputs, 0.0)  # the forward pass is the same arithmetic
    # Only the order of the sums over microbatches may differ.
    expect_close(found_grads, grads, 1e-14)
    splits = any(a.kind == core.Kind.WEIGHT_GRAD for row in schedule.ranks for a in row)
    assert any(ready for *_, ready in results) == splits


def test_every_schedule_is_covered() -> None:
    assert {name for name, *_ in CASES} == set(core.schedule_names())


def test_bfloat16(world: WorkerPools) -> None:
    wanted = serial(make("zb-v", 2, 5), torch.bfloat16, False)
    found = merge(world(2).run(train, "zb-v", 5, torch.bfloat16))
    expect_close(found[0], wanted[0], 0.0)
    # A sum of five rounded terms in another order: five roundings of 2^-8 at most.
    expect_close(found[1], wanted[1], 5 * 2.0**-8)


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "interleaved"])
def test_variable_lengths(world: WorkerPools, name: str) -> None:
    wanted = serial(make(name, 2, 6), torch.float64, True)
    found = merge(world(2).run(train, name, 6, torch.float64, True))
    expect_close(found[0], wanted[0], 0.0)
    expect_close(found[1], wanted[1], 1e-14)


def test_a_group_per_channel(world: WorkerPools) -> None:
    wanted = serial(make("zb-v", 4, 9), torch.float64, True)
    found = merge(world(4).run(train, "zb-v", 9, torch.float64, True, True))
    expect_close(found[0], wanted[0], 0.0)
    expect_close(found[1], wanted[1], 1e-14)


def test_runs_again_bitwise(world: WorkerPools) -> None:
    once = merge(world(2).run(train, "zb-h1", 5, torch.float32))
    again = merge(world(2).run(train, "zb-h1", 5, torch.float32, False, False, 3))
    expect_close(again[0], once[0], 0.0)
    expect_close(again[1], once[1], 0.0)


def evaluate(group: Group, name: str, num_microbatches: int) -> tuple[dict[int, Tensor], int]:
    schedule = make(name, group.size, num_microbatches)
    stages = Stages(schedule.placement, group.rank, torch.float64)
    spec = TensorSpec((4, 3, HIDDEN), torch.float64)
    transport = PipelineTransport(group, schedule.placement.num_stages, spec)
    # The window of sends is smaller than their number.
    runner = PipelineRunner(
        schedule,
        group.rank,
        stages.functions(),
        transport,
        store=stages.store,
        max_pending_sends=2,
    )
    run = runner.run(forward_only=True)
    kinds = {step.action.kind for step in run.trace.steps}
    assert kinds <= {core.Kind.FORWARD, core.Kind.SEND_FORWARD, core.Kind.RECV_FORWARD}
    return run.outputs, len(gradients(stages))


@pytest.mark.parametrize("name", ["1f1b", "dualpipe"])
def test_forward_only(world: WorkerPools, name: str) -> None:
    wanted, _ = serial(make(name, 2, 8), torch.float64, False)
    results = world(2).run(evaluate, name, 8)
    expect_close(merge([(outputs, {}) for outputs, _ in results])[0], wanted, 0.0)
    assert [count for _, count in results] == [0, 0]


def needs_the_gil(group: Group) -> bool:
    """Rank 1 waits in the pipeline for what rank 0 sends after a thread of rank 1 spoke."""
    schedule = make("1f1b", 2, 1)
    transport = PipelineTransport(group, 2, TensorSpec((1,), torch.float32))
    token = torch.zeros(1)

    def first(microbatch: int, x: Tensor | None) -> Tensor:
        group.recv(token, 1, 2**20).wait()
        return torch.ones(1, requires_grad=True) * 2

    def last(microbatch: int, x: Tensor | None) -> Tensor:
        assert x is not None
        return x.sum()

    started = threading.Event()

    def speak() -> None:
        started.wait()
        group.send(token, 0, 2**20).wait()

    thread = threading.Thread(target=speak)
    if group.rank == 1:
        thread.start()
        started.set()
    stage = last if group.rank else first
    PipelineRunner(schedule, group.rank, {group.rank: stage}, transport).run()
    if group.rank == 1:
        thread.join()
    return True


def test_gil_is_released_while_waiting(world: WorkerPools) -> None:
    assert world(2).run(needs_the_gil) == [True, True]


class FakeProcessGroup:
    """A backend whose sends go nowhere and whose receives give ones, or fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.sent: list[Any] = []
        self.alive_at_recv: list[int] = []

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> FakeProcessGroup:
        self.sent.append(weakref.ref(tensors[0]))
        return self

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> FakeProcessGroup:
        self.alive_at_recv.append(sum(ref() is not None for ref in self.sent))
        tensors[0].fill_(1)
        return self

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        if self.fails:
            raise RuntimeError("Connection closed by peer")


def first_of_two(
    process_group: FakeProcessGroup, stage: Any, hooks: PipelineHooks | None = None
) -> PipelineRunner:
    """The runner of rank 0 of two, whose peer is a fake."""
    schedule = make("1f1b", 2, 5)
    group = Group("pp", (0, 1), 0, process_group)  # type: ignore[arg-type]
    group.record.step = 7
    transport = PipelineTransport(group, 2, TensorSpec((2, 3), torch.float32))
    return PipelineRunner(schedule, 0, {0: stage}, transport, hooks=hooks or PipelineHooks())


def test_outputs_are_released_once_sent() -> None:
    bias = torch.zeros(3, requires_grad=True)
    process_group = FakeProcessGroup()
    runner = first_of_two(process_group, lambda microbatch, x: torch.zeros(2, 3) + bias)
    runner.run()
    assert len(process_group.sent) == 5
    assert all(ref() is None for ref in process_group.sent)
    # A sum saves nothing, so at a receive only the latest output is still there, if any.
    assert max(process_group.alive_at_recv) <= 1
    assert bias.grad is not None
    assert bias.grad.tolist() == [10.0] * 3


def test_failures_name_the_step() -> None:
    weight = torch.ones(3, requires_grad=True)
    runner = first_of_two(FakeProcessGroup(fails=True), lambda m, x: torch.ones(2, 3) * weight)
    with pytest.raises(CommunicationError) as lost:
        runner.run()
    words = r"send to rank 1 of a tensor \[2, 3\] float32 in group pp .* in step 7: Connection"
    assert re.search(words, str(lost.value))
    assert re.search(r"in the pipeline: rank 0, step \d+ of 20 \(0SEND_F\d\)$", str(lost.value))
    runner = first_of_two(FakeProcessGroup(), lambda m, x: torch.ones(2, 4) * weight.sum())
    with pytest.raises(UsageError, match=r"\[2, 4\] torch.float32 is to be sent to stage 1, which"):
        runner.run()

    def stage(microbatch: int, x: Tensor | None) -> Tensor:
        raise LookupError("no such sample")

    with pytest.raises(LookupError, match="no such sample") as wrong:
        first_of_two(FakeProcessGroup(), stage).run()
    if sys.version_info >= (3, 11):
        (note,) = wrong.value.__notes__
        assert re.fullmatch(r"in the pipeline: rank 0, step \d+ of 20 \(0F0\)", note)


def test_interrupts_pass_through() -> None:
    def stage(microbatch: int, x: Tensor | None) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_of_two(FakeProcessGroup(), stage).run()


def test_hooks_surround_the_last_gradients() -> None:
    placement = core.plain_placement(1, 2)
    steps = ["0GATHER_PARAM1", "0F0", "0F1", "0I0", "0I1", "0W1", "0W0", "0REDUCE_GRAD3"]
    schedule = core.Schedule("by hand", placement, [[core.Action.parse(step) for step in steps]])
    stages = Stages(placement, None, torch.float64)
    events: list[tuple[str, int, int]] = []

    def note(what: str) -> Callable[..., None]:
        return lambda stage, bucket=-1: events.append((what, bucket, len(stages.ready)))

    hooks = PipelineHooks(
        before_last=note("before"),
        after_last=note("after"),
        reduce_grad=note("reduce"),
        gather_param=note("gather"),
    )
    transport = PipelineTransport(Group("pp"), 1, TensorSpec((1,), torch.float64))
    runner = PipelineRunner(
        schedule, 0, stages.functions(), transport, store=stages.store, hooks=hooks
    )
    runner.run()
    # Two weights become ready in each W.
    assert events == [("gather", 1, 0), ("before", -1, 2), ("after", -1, 4), ("reduce", 3, 4)]
    events.clear()
    weight = torch.ones(3, requires_grad=True)
    hooks = PipelineHooks(before_last=note("before"), after_last=note("after"))
    first_of_two(FakeProcessGroup(), lambda m, x: torch.ones(2, 3) * weight, hooks).run()
    assert [what for what, *_ in events] == ["before", "after"]


def test_refuses_what_does_not_fit() -> None:
    schedule = make("zb-h1", 2, 3)
    transport = PipelineTransport(Group("pp", (0, 1)), 2, TensorSpec((1,), torch.float32))
    with pytest.raises(ValueError, match=r"has stages \[0\] of the schedule, .* given for \[1\]"):
        PipelineRunner(schedule, 0, {1: lambda m, x: torch.ones(())}, transport)
    with pytest.raises(ValueError, match="zb-h1 needs a store of weight gradients"):
        PipelineRunner(schedule, 0, {0: lambda m, x: torch.ones(())}, transport)
    variable = PipelineTransport(
        Group("pp", (0, 1)), 2, TensorSpec((), torch.float32), variable=True
    )
    for x in (torch.ones((1,) * 7), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(UsageError, match="cannot be sent"):
            variable.post_send(1, 1, 0, False, x)

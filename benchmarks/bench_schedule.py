"""Pipeline schedules over processes: measured step, simulated step, torch.distributed.pipelining.

    python benchmarks/bench_schedule.py [--processes 2 4 8] [--repeats 3] [--schedules 1f1b zb-v]

Processes talk over Gloo. The compute of a stage is a calibrated wait, so that more processes than
cores do not disturb each other and everything else that costs time shows. Both engines run the
same modules in the same processes, in turns. A rank has the same share of the model in every
schedule: a stage of a schedule with two stages per rank takes half as long.

step     latest end minus earliest start over the ranks, median of the repeats
ideal    simulated step if messages and the engine took no time and stages took their waits
model    the same with stages that took what they took in this run, on the mean of each kind and
         stage: what is left between it and the step are messages, the engine, and jitter
engine   time of a run that was neither in a stage (its function, autograd's pass through it) nor
         waiting for a message, per action (F, B, I, W, SEND, RECV)
stage    time in stages beyond their waits, per compute action: what autograd costs with any engine
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.pipelining.schedules as peers
from torch import Tensor, nn
from torch.distributed import FileStore
from torch.distributed.pipelining import PipelineStage

from megacore._C import pipeline as core
from megacore.parallel.groups import Group
from megacore.parallel.p2p import PipelineTransport, TensorSpec
from megacore.parallel.pipeline import PipelineRunner
from megacore.parallel.weight_grad import WeightGradStore

SPIN_S = 150e-6  # a sleep may end this late
PEERS = {
    "gpipe": ("ScheduleGPipe", 1),
    "1f1b": ("Schedule1F1B", 1),
    "interleaved": ("ScheduleInterleaved1F1B", 2),
    "zb-h1": ("ScheduleInterleavedZeroBubble", 1),
    "zb-v": ("ScheduleZBVZeroBubble", 2),
    "dualpipev": ("ScheduleDualPipeV", 2),
}


class Clock:
    """Waits that stand for compute.

    Attributes:
        total_s: Time in waits.
        stages_s: Time in stages, waits included.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self.stages_s = 0.0

    @contextmanager
    def in_stage(self) -> Iterator[None]:
        """Counts the time within as that of a stage."""
        start = time.perf_counter()
        yield
        self.stages_s += time.perf_counter() - start

    def wait(self, seconds: float) -> None:
        start = time.perf_counter()
        end = start + seconds
        if seconds > SPIN_S:
            time.sleep(seconds - SPIN_S)
        while time.perf_counter() < end:
            pass
        self.total_s += time.perf_counter() - start


class _Input(torch.autograd.Function):
    """The path from input to output: takes F, and I on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: WaitingStage) -> Tensor:
        ctx.stage = stage
        stage.clock.wait(stage.forward_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        ctx.stage.clock.wait(ctx.stage.input_grad_s)
        return dy.contiguous(), None


class _Weight(torch.autograd.Function):
    """The path from weight to output: takes W on the way back, at once or when its turn comes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, stage: WaitingStage) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stage = stage
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        store = ctx.stage.store

        def gradient() -> Tensor:
            ctx.stage.clock.wait(ctx.stage.weight_grad_s)
            return dy.clone()

        if store is not None and store.is_deferring:
            store.defer(weight, gradient)
            return None, None
        return gradient(), None


class WaitingStage(nn.Module):
    """A stage whose compute takes given times."""

    def __init__(
        self, shape: Sequence[int], times_s: Sequence[float], clock: Clock, store: Any
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.forward_s, self.input_grad_s, self.weight_grad_s = times_s
        self.clock = clock
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        return _Input.apply(x, self) + _Weight.apply(self.weight, self)


def loss_of(output: Tensor, target: Tensor | None = None) -> Tensor:
    return output.sum()


class Setting:
    """What all ranks agree on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.times_us = [1000.0 * ms for ms in arguments.costs_ms]
        self.num_microbatches: int = arguments.microbatches
        self.repeats: int = arguments.repeats
        self.schedules: list[str] = arguments.schedules or core.schedule_names()
        self.shape = (16, arguments.width)

    def costs(self, placement: Any) -> Any:
        forward, input_grad, weight_grad = self.times_us
        share = core.Costs(forward_us=forward, input_grad_us=input_grad, weight_grad_us=weight_grad)
        return core.share_costs(placement, share)

    def stage_times_s(self, num_chunks: int) -> list[float]:
        return [1e-6 * us / num_chunks for us in self.times_us]


def make_schedule(name: str, num_ranks: int, setting: Setting) -> Any:
    schedule = core.make_schedule(
        name, num_ranks=num_ranks, num_microbatches=setting.num_microbatches
    )
    return core.add_communication(schedule)


def our_step(
    schedule: Any, group: Group, setting: Setting, clock: Clock
) -> Callable[[], tuple[float, float, Any]]:
    """A step, which returns microseconds of the engine, of stages beyond waits, and a trace."""
    store = WeightGradStore()
    placement = schedule.placement
    num_chunks = len(placement.chains[0]) // placement.num_ranks
    x0 = torch.zeros(setting.shape, requires_grad=True)
    stages = {
        stage: WaitingStage(setting.shape, setting.stage_times_s(num_chunks), clock, store)
        for stage in placement.stages_of(group.rank)
    }

    def function(stage: int) -> Callable[[int, Tensor | None], Tensor]:
        is_last = placement.is_last(stage)

        def run(microbatch: int, x: Tensor | None) -> Tensor:
            with clock.in_stage():
                output = stages[stage](x0 if x is None else x)
                return loss_of(output) if is_last else output

        return run

    transport = PipelineTransport(
        group, placement.num_stages, TensorSpec(setting.shape, torch.float32)
    )
    functions = {stage: function(stage) for stage in stages}
    runner = PipelineRunner(schedule, group.rank, functions, transport, store=store)

    autograd = torch.autograd.backward

    def timed_backward(*arguments: Any) -> None:
        with clock.in_stage():
            autograd(*arguments)

    def step() -> tuple[float, float, Any]:
        waits, stages = clock.total_s, clock.stages_s
        torch.autograd.backward = timed_backward
        try:
            trace = runner.run().trace
        finally:
            torch.autograd.backward = autograd
        waits, stages = clock.total_s - waits, clock.stages_s - stages
        # A weight-gradient pass runs outside autograd: its wait is all there is of the stage.
        split = [s for s in trace.steps if s.action.kind == core.Kind.WEIGHT_GRAD]
        in_split = 1e-9 * sum(s.end_ns - s.start_ns for s in split)
        compute = sum(s.action.kind.value <= core.Kind.WEIGHT_GRAD.value for s in trace.steps)
        waited = trace.drain_ns + sum(s.wait_ns for s in trace.steps)
        engine = 1e-9 * (trace.end_ns - trace.start_ns - waited) - stages - in_split
        beyond = stages + in_split - waits
        return 1e6 * engine / len(trace.steps), 1e6 * beyond / compute, trace

    return step


def peer_step(name: str, group: Group, setting: Setting, clock: Clock) -> Callable[[], None]:
    """A step of torch.distributed.pipelining's schedule of the same kind."""
    kind, num_chunks = PEERS[name]
    size, rank = group.size, group.rank
    mine = [rank + size * chunk for chunk in range(num_chunks)]
    if name in ("zb-v", "dualpipev"):
        mine = [rank, 2 * size - 1 - rank]
    stages = [
        PipelineStage(
            WaitingStage(setting.shape, setting.stage_times_s(num_chunks), clock, None),
            index,
            size * num_chunks,
            torch.device("cpu"),
            group=group.process_group,
        )
        for index in mine
    ]
    single = name in ("gpipe", "1f1b")
    schedule = getattr(peers, kind)(
        stages[0] if single else stages, setting.num_microbatches, loss_fn=loss_of
    )
    batch = torch.zeros(setting.num_microbatches * setting.shape[0], setting.shape[1])
    batch.requires_grad_()
    has_first = 0 in mine
    has_last = size * num_chunks - 1 in mine

    def step() -> None:
        arguments = (batch,) if has_first else ()
        options = {"target": batch.detach(), "losses": []} if has_last else {}
        schedule.step(*arguments, **options)

    return step


def measured_costs(runs: Sequence[Any], group: Group, num_stages: int) -> Any:
    """Mean times of the steps of each stage in the traces of all ranks."""
    kinds = (core.Kind.FORWARD, core.Kind.BACKWARD, core.Kind.INPUT_GRAD, core.Kind.WEIGHT_GRAD)
    sums = torch.zeros(len(kinds), num_stages, 2, dtype=torch.float64)
    for trace in runs:
        for s in trace.steps:
            if s.action.kind in kinds:
                took = torch.tensor([1e-3 * (s.end_ns - s.start_ns), 1.0], dtype=torch.float64)
                sums[kinds.index(s.action.kind), s.action.stage] += took
    group.all_reduce(sums)
    means = (sums[..., 0] / sums[..., 1].clamp(min=1)).tolist()
    return core.Costs(
        forward_us=means[0], backward_us=means[1], input_grad_us=means[2], weight_grad_us=means[3]
    )


def timed(group: Group, step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds from the first start to the last end over the ranks, and what the step returned."""
    group.barrier()
    start = time.monotonic()
    result = step()
    times = torch.tensor([-start, time.monotonic()], dtype=torch.float64)
    group.all_reduce(times, "max")
    return float(times.sum()), result


def bench_one(name: str, group: Group, setting: Setting) -> str:
    """A row of the table; empty where the schedule cannot be made."""
    clock = Clock()
    try:
        schedule = make_schedule(name, group.size, setting)
    except ValueError:
        return ""
    ideal = 1e-6 * core.simulate(schedule, setting.costs(schedule.placement)).makespan_us
    steps: dict[str, Callable[[], Any]] = {"ours": our_step(schedule, group, setting, clock)}
    if name in PEERS:
        steps["torch"] = peer_step(name, group, setting, clock)
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    engine: list[tuple[float, float]] = []
    traces: list[Any] = []
    for repeat in range(setting.repeats + 1):
        for kind, step in steps.items():
            took, result = timed(group, step)
            if repeat == 0:
                continue  # warm-up: connections, and torch exchanges shapes
            seconds[kind].append(took)
            if kind == "ours":
                engine.append(result[:2])
                traces.append(result[2])
    own = torch.tensor([statistics.median(column) for column in zip(*engine, strict=True)])
    group.all_reduce(own, "max")
    costs = measured_costs(traces, group, schedule.placement.num_stages)
    model = 1e-6 * core.simulate(schedule, costs).makespan_us
    over_model = statistics.median(seconds["ours"]) / model - 1
    row = f"| {name} | {group.size} | {1e3 * ideal:.0f} | {1e3 * model:.1f} | {over_model:+.2%} "
    for kind in ("ours", "torch"):
        if kind in seconds:
            took = statistics.median(seconds[kind])
            best = min(seconds[kind])
            row += f"| {1e3 * took:.1f} | {took / ideal - 1:+.2%} ({best / ideal - 1:+.2%}) "
        else:
            row += "| | "
    return row + f"| {own[0]:.0f} | {own[1]:.0f} |"


def worker(rank: int, size: int, path: str, setting: Setting) -> None:
    """One process of the benchmark."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=FileStore(path, size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=120),
    )
    group = Group("pp", tuple(range(size)), rank, torch.distributed.group.WORLD)
    for name in setting.schedules:
        row = bench_one(name, group, setting)
        if rank == 0 and row:
            print(row, flush=True)
    group.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--costs-ms", type=float, nargs=3, default=[20.0, 20.0, 20.0])
    parser.add_argument("--width", type=int, default=256, help="of the [16, width] tensors sent")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--schedules", nargs="+", choices=core.schedule_names())
    setting = Setting(parser.parse_args())
    forward, input_grad, weight_grad = (us / 1000 for us in setting.times_us)
    print(
        f"F {forward:g} ms, I {input_grad:g} ms, W {weight_grad:g} ms per rank, "
        f"{setting.num_microbatches} microbatches, {setting.repeats} repeats, best in brackets\n"
    )
    print(
        "| schedule | ranks | ideal ms | model ms | over model | step ms | over ideal "
        "| torch ms | torch over ideal | engine us | stage us |"
    )
    print("|" + "---|" * 11, flush=True)
    for size in parser.parse_args().processes:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (size, f"{folder}/store", setting)
            torch.multiprocessing.spawn(worker, arguments, nprocs=size)


if __name__ == "__main__":
    main()

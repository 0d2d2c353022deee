"""One process's part of a pipeline: autograd around the C++ executor.

The trainer gives a function per stage; the runner cuts the autograd graph at the stages' borders,
runs the schedule, and lets go of every tensor as soon as the schedule allows. Of a stage's output
only the autograd node is kept for the backward pass: its memory is free once it was sent, unless
autograd itself saved it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from megacore._C import pipeline as core
from megacore.errors import MegacoreError
from megacore.parallel.weight_grad import WeightGradStore

# Computes the output of a stage from the number of the microbatch and the output of the stage
# before (None for the first stage, which reads its batch by itself). The last stage returns the
# scalar that is differentiated.
Stage = Callable[[int, Tensor | None], Tensor]


class Transport(Protocol):
    """What moves tensors between ranks; see `p2p.PipelineTransport`."""

    def post_send(
        self, peer: int, stage: int, microbatch: int, backward: bool, value: Tensor
    ) -> Any:
        """Starts to send; returns an object with `test()` and `wait()`."""

    def post_recv(self, peer: int, stage: int, microbatch: int, backward: bool) -> Any:
        """Starts to receive; `wait()` of the returned object gives the tensor."""

    def abort(self, reason: str) -> None:
        """Gives up what is under way."""


@dataclass(frozen=True, kw_only=True)
class PipelineHooks:
    """What else happens while a schedule runs.

    Attributes:
        before_last: Called with a stage before the last step of the run that adds to the gradients
            of its weights (a full backward pass or a weight-gradient pass).
        after_last: Called with a stage after that step: all its gradients are complete.
        reduce_grad: Starts to reduce the gradients of (stage, bucket).
        gather_param: Starts to gather the parameters of (stage, bucket).
    """

    before_last: Callable[[int], None] | None = None
    after_last: Callable[[int], None] | None = None
    reduce_grad: Callable[[int, int], None] | None = None
    gather_param: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class PipelineRun:
    """What a run gave.

    Attributes:
        outputs: Microbatch -> what the last stage returned, without graph; empty on a rank
            without a last stage.
        trace: When each step ran (`megacore._C.pipeline.RunTrace`).
    """

    outputs: dict[int, Tensor]
    trace: Any


@dataclass
class _Saved:
    """What the backward pass of one (stage, microbatch) needs."""

    x: Tensor | None
    edge: GradientEdge


@dataclass
class PipelineRunner:
    """Runs a schedule's list of one rank.

    Attributes:
        schedule: `megacore._C.pipeline.Schedule` with its transfers (`add_communication`).
        rank: Rank of the pipeline.
        stages: Function of each stage that lives on this rank.
        transport: Moves tensors between ranks.
        store: Where linear layers leave weight gradients; needed by schedules that split the
            backward pass.
        hooks: What else happens.
        max_pending_sends: Sends of one channel that may be under way.
    """

    schedule: Any
    rank: int
    stages: Mapping[int, Stage]
    transport: Transport
    store: WeightGradStore | None = None
    hooks: PipelineHooks = field(default_factory=PipelineHooks)
    max_pending_sends: int = 8

    def __post_init__(self) -> None:
        placement = self.schedule.placement
        expected = placement.stages_of(self.rank)
        if sorted(self.stages) != expected:
            raise ValueError(
                f"rank {self.rank} has stages {expected} of the schedule, functions were "
                f"given for {sorted(self.stages)}"
            )
        self.is_last = {stage: placement.is_last(stage) for stage in expected}
        self._executor = core.Executor(
            self.schedule, self.rank, self.transport, max_pending_sends=self.max_pending_sends
        )
        adds = (core.Kind.BACKWARD, core.Kind.WEIGHT_GRAD)
        actions = self.schedule.ranks[self.rank]
        # Later entries win: the last step of each stage that adds to weight gradients.
        self.last_steps = {a.stage: (a.kind, a.number) for a in actions if a.kind in adds}
        if self.schedule.splits_backward and self.store is None:
            raise ValueError(f"schedule {self.schedule.name} needs a store of weight gradients")

    def run(self, *, forward_only: bool = False) -> PipelineRun:
        """Runs all microbatches; gradients are added to those of the parameters.

        Args:
            forward_only: Evaluation: no graph is recorded and no backward step runs.

        Raises:
            CommunicationError: A peer failed or took longer than the timeout.
            Exception: Whatever a stage raised; the step is added to the message.
        """
        steps = _Steps(self, forward_only)
        try:
            trace = self._executor.run(steps, forward_only=forward_only)
        except Exception as error:
            if self.store is not None:
                self.store.clear()
            where = f"in the pipeline: {self._executor.position}"
            if isinstance(error, MegacoreError):
                error.args = (f"{error}\n  {where}", *error.args[1:])
            elif hasattr(error, "add_note"):  # Python 3.11
                error.add_note(where)
            raise
        return PipelineRun(steps.outputs, trace)


class _Steps:
    """The callbacks of one run."""

    def __init__(self, runner: PipelineRunner, forward_only: bool) -> None:
        self.outputs: dict[int, Tensor] = {}
        self._runner = runner
        self._forward_only = forward_only
        self._saved: dict[tuple[int, int], _Saved] = {}

    def forward(self, stage: int, microbatch: int, x: Tensor | None) -> Tensor | None:
        runner = self._runner
        if self._forward_only:
            with torch.no_grad():
                output = runner.stages[stage](microbatch, x)
        else:
            if x is not None:
                # A leaf of this stage's own graph: also a neighbour on the same rank gets one.
                x = x.detach().requires_grad_(x.is_floating_point())
            output = runner.stages[stage](microbatch, x)
            self._saved[stage, microbatch] = _Saved(x, get_gradient_edge(output))
        output = output.detach()
        if runner.is_last[stage]:
            self.outputs[microbatch] = output
            return None
        return output

    def backward(
        self, stage: int, microbatch: int, grad: Tensor | None, input_only: bool
    ) -> Tensor | None:
        saved = self._saved.pop((stage, microbatch))
        if input_only:
            assert self._runner.store is not None
            with self._runner.store.deferring(stage, microbatch):
                torch.autograd.backward(saved.edge, grad)
        else:
            with self._adding(stage, core.Kind.BACKWARD, microbatch):
                torch.autograd.backward(saved.edge, grad)
        return None if saved.x is None else saved.x.grad

    def weight_grad(self, stage: int, microbatch: int) -> None:
        assert self._runner.store is not None
        with self._adding(stage, core.Kind.WEIGHT_GRAD, microbatch):
            self._runner.store.run(stage, microbatch)

    def reduce_grad(self, stage: int, bucket: int) -> None:
        reduce = self._runner.hooks.reduce_grad
        if reduce is not None:
            reduce(stage, bucket)

    def gather_param(self, stage: int, bucket: int) -> None:
        gather = self._runner.hooks.gather_param
        if gather is not None:
            gather(stage, bucket)

    @contextmanager
    def _adding(self, stage: int, kind: Any, microbatch: int) -> Iterator[None]:
        """Around a step that adds to the gradients of a stage's weights."""
        hooks = self._runner.hooks
        is_last = self._runner.last_steps[stage] == (kind, microbatch)
        if is_last and hooks.before_last is not None:
            hooks.before_last(stage)
        yield
        if is_last and hooks.after_last is not None:
            hooks.after_last(stage)

"""Mixed-precision optimizer: buckets, loss scale, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megacore.errors import CheckpointError, UsageError
from megacore.optim import state
from megacore.optim.buffers import Bucket
from megacore.optim.loss_scale import LossScale
from megacore.optim.memory import MemoryReport, memory_report
from megacore.optim.reductions import clip_coefficient, count_zeros, square_sum
from megacore.optim.schedule import Rates
from megacore.optim.updates import Flat, UpdateRule
from megacore.parallel.data import DataGroups, GradientSync, ParameterSync
from megacore.parallel.groups import Group, ParallelGroups
from megacore.parallel.sharded_data import GradientScatter, ParameterShards


@dataclass(frozen=True)
class StepResult:
    """What one call of `step` did.

    Attributes:
        updated: False when a gradient was not finite; then no parameter and no state changed.
        grad_norm: L2 norm of the averaged, unscaled gradients, before clipping.
        num_zeros: Gradient elements that are exactly zero, when asked for.
    """

    updated: bool
    grad_norm: float | None
    num_zeros: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reductions:
    """What an optimizer exchanges with other processes.

    Attributes:
        groups: The groups of this process.
        data: Those with equal parameters.
        gradients: Sums gradients.
        parameters: Gathers parameters after the update.
        overlap_gather: Gather them when the next forward needs them.
    """

    groups: ParallelGroups
    data: DataGroups
    gradients: GradientSync | GradientScatter
    parameters: ParameterSync | ParameterShards
    overlap_gather: bool = False


class Optimizer:
    """Updates the parameters of a model from gradients summed over micro-batches.

    Use, per iteration: `zero_grad()`; per micro-batch `backward(loss)`, before the last one
    `last_microbatch(chunk)`; then `step(rates)`. The parameters of the model become views of flat
    buffers, so load weights in place (`copy_`, `load_state_dict`), never by assigning new tensors,
    and call `refresh_main_params` after it.

    All processes of a run call the same methods; `step` gives the same result on all.

    Args:
        buckets: What is updated, in the order of the chunks and of backward.
        update: The update rule.
        loss_scale: Scale of the loss.
        clip_grad: Largest global norm, 0 for no clipping.
        reductions: What is exchanged with other processes.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        *,
        update: UpdateRule,
        loss_scale: LossScale,
        clip_grad: float,
        reductions: Reductions,
    ) -> None:
        self.buckets = tuple(buckets)
        self._update = update
        self._loss_scale = loss_scale
        self._clip_grad = clip_grad
        self._reductions = reductions
        self._step = 0
        for bucket in self.buckets:
            bucket.state = {name: torch.zeros_like(bucket.main) for name in update.names}
        self.zero_grad()

    @property
    def loss_scale(self) -> float:
        """Factor that `backward` puts on the loss."""
        return self._loss_scale.scale

    @property
    def num_steps(self) -> int:
        """Updates done so far; skipped steps do not count."""
        return self._step

    def zero_grad(self) -> None:
        """Sets the gradient sums to zero, in place; the iteration begins."""
        for bucket in self.buckets:
            bucket.zero_grad()
        self._reductions.gradients.reset()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch's loss, scaled, to the sums.

        Args:
            loss: [] scalar.
        """
        scale = self._loss_scale.scale
        torch.autograd.backward(loss if scale == 1.0 else loss.float() * scale)

    def last_microbatch(self, chunk_idx: int = 0) -> None:
        """Tells that the next backward of this chunk is the last one of the iteration.

        Call it before that backward; with `--overlap-grad-reduce` the reduction of a bucket then
        starts as soon as its gradients are complete. All processes with equal parameters must
        call it for their chunks in the same order. Without the call all is reduced in the end.

        Args:
            chunk_idx: Index among the chunks that `build_optimizer` was given.
        """
        self._reductions.gradients.arm(chunk_idx)

    def ready(self, param: nn.Parameter) -> None:
        """Tells that the last gradient of a parameter was added to its `main_grad`.

        Only for gradients that do not come from autograd (a deferred weight-gradient pass). It
        counts after `last_microbatch` of its chunk; no gradient of the parameter may come later.
        """
        self._reductions.gradients.ready(param)

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Reduces what is not reduced yet and waits for all of it. `step` calls it.

        In this order: sums over the data and context parallel processes; over the tensor-parallel
        ones, of gradients of which each has a part; over the stages that share an embedding.

        Raises:
            RuntimeError: A gradient was moved out of its buffer.
        """
        sync = self._reductions.gradients
        if sync.finished:
            return
        for bucket in self.buckets:
            bucket.check_gradients()
        sync.finish()
        self._sum_partial()
        for bucket in self.buckets:
            if bucket.tied is not None:
                bucket.tied.all_reduce(bucket.own_grad)
        for bucket in self.buckets:
            bucket.take_main_grad()

    def _sum_partial(self) -> None:
        """Sums gradients of which each tensor-parallel process computed a part."""
        group = self._reductions.groups.tp
        if group.size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for bucket in self.buckets:
            parts = [bucket.own_grad[r.part] for r in bucket.runs if r.treatment.partial]
            by_dtype.setdefault(bucket.grad.dtype, []).extend(parts)
        for parts in by_dtype.values():
            if parts:
                flat = torch.cat(parts)
                group.all_reduce(flat)
                torch._foreach_copy_(parts, flat.split([part.numel() for part in parts]))

    @torch.no_grad()
    def step(
        self, rates: Rates, *, grad_divisor: float = 1.0, count_zero_grads: bool = False
    ) -> StepResult:
        """Reduces, unscales, checks, clips and updates.

        Args:
            rates: Learning rates and weight decay of this step.
            grad_divisor: The sums are divided by it: the number of micro-batches, or of tokens.
            count_zero_grads: Count the gradient elements that are zero.

        Returns:
            What happened, the same on all processes. When any gradient of any process is not
            finite, in whatever precision, the step is skipped: an update would destroy the model
            beyond repair.

        Raises:
            RuntimeError: A gradient was moved out of its buffer.
            UsageError: The rates lack one that the model needs.
        """
        self._reductions.parameters.settle()
        self.finish_gradients()
        unscale = 1.0 / (self._loss_scale.scale * grad_divisor)
        squares, zeros = self._totals(lambda bucket: bucket.main_grad, zeros=count_zero_grads)
        grad_norm = math.sqrt(squares) * unscale if squares >= 0.0 else math.nan
        num_zeros = zeros if count_zero_grads else None
        finite = math.isfinite(grad_norm)
        self._loss_scale.update(overflow=not finite)
        if not finite:
            return StepResult(updated=False, grad_norm=grad_norm, num_zeros=num_zeros)
        grad_scale = unscale * clip_coefficient(grad_norm, self._clip_grad)
        self._step += 1
        for bucket in self.buckets:
            self._update_bucket(bucket, rates, grad_scale)
        self.publish_params()
        return StepResult(updated=True, grad_norm=grad_norm, num_zeros=num_zeros)

    def _update_bucket(self, bucket: Bucket, rates: Rates, grad_scale: float) -> None:
        copied = not (bucket.main_is_model or bucket.shares_parameters)
        model = bucket.own_model if copied else None
        flat = Flat(bucket.main, bucket.main_grad, model, bucket.state)
        for run in bucket.runs:
            key = run.treatment.key
            lr = rates.decoupled_lr if key.decoupled else rates.lr
            if lr is None:
                raise UsageError("the model has decoupled groups, but the rates have no such rate")
            self._update.step(
                flat.part(run.part),
                lr=lr * key.lr_mult,
                weight_decay=rates.weight_decay * key.wd_mult,
                step=self._step,
                grad_scale=grad_scale,
            )

    def _totals(
        self, values: Callable[[Bucket], Tensor], *, zeros: bool = False
    ) -> tuple[float, int]:
        """Sum of squares, and number of zeros when asked for, over the whole model.

        Every element is taken once: of processes that hold equal ones, one takes it. The last
        reduction is over all processes, so that they go on with bitwise the same number.
        """
        device = self.buckets[0].model.device
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        if self._reductions.data.replica.is_first:
            parts = [values(b)[r] for b in self.buckets for r in b.counted]
            if parts:
                totals[0] = square_sum(parts)
                if zeros:
                    padding = sum(bucket.num_padding for bucket in self.buckets)
                    totals[1] = torch.stack([count_zeros(p) for p in parts]).sum() - padding
        self._reductions.groups.world.all_reduce(totals)
        squares, num_zeros = totals.tolist()
        return squares, int(num_zeros) if math.isfinite(num_zeros) else 0

    @torch.no_grad()
    def params_norm(self) -> float:
        """L2 norm over the main parameters of the whole model."""
        return math.sqrt(self._totals(lambda bucket: bucket.main)[0])

    def publish_params(self) -> None:
        """Makes the updated parameters those of all processes; `step` calls it.

        With `--overlap-param-gather` that happens until the next forward needs them.
        """
        self._reductions.parameters.start()
        if not self._reductions.overlap_gather:
            self.finish_params()

    def finish_params(self) -> None:
        """Waits until the parameters of the last step are here.

        With `--overlap-param-gather` or sharded parameters the forward of the model takes care
        of it; whatever else reads or writes parameters must call this first, on all processes.
        """
        self._reductions.parameters.finish()

    @torch.no_grad()
    def refresh_main_params(self) -> None:
        """Takes the main parameters from the model's; call after loading weights alone."""
        for bucket in self.buckets:
            bucket.refresh_main()

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Name and sum of the gradients of every parameter: views, in their shapes.

        With a sharded optimizer, after `finish_gradients`, only the own parts are sums over all
        processes; with sharded gradients there is nothing to see.
        """
        for bucket in self.buckets:
            if bucket.has_open_sums:
                for param, view in bucket.views(bucket.grad):
                    yield param.name, view

    def memory_report(self) -> MemoryReport:
        """Bytes that this process holds for training."""
        return memory_report(self.buckets)

    def state_pieces(self) -> Iterator[state.StatePiece]:
        """The ranges of state tensors that this process owns: views of the live state.

        Processes with equal parameters own different ranges with a sharded optimizer, and all of
        them the whole without.
        """
        return state.state_pieces(self.buckets)

    @property
    def replicas(self) -> Group:
        """The processes that own the same ranges."""
        return self._reductions.data.replica

    def gather_state(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of the whole state of this process's parameters, bucket by bucket.

        With a sharded optimizer the processes that share it must all iterate, and a tensor is
        valid until the next one is asked for.
        """
        return state.gather_state(self.buckets, self._reductions.data.shard)

    def state_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor in the shape of the parameter: `exp_avg.<parameter>` and so on.

        Main parameters are there (as `main_param.<parameter>`) unless they are the model's own.
        Views into the live state, but copies (which all processes must ask for) with a sharded
        optimizer; `gather_state` needs less memory.
        """
        return dict(self.gather_state())

    def state_values(self) -> dict[str, Any]:
        """What `load_state` needs besides the tensors, as JSON values."""
        return {"step": self._step, "loss_scale": self._loss_scale.state_values()}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Restores `state_values`, after the tensors were loaded.

        Raises:
            CheckpointError: A value is missing or of the wrong kind.
        """
        step, scale = values.get("step"), values.get("loss_scale")
        if not isinstance(step, int) or step < 0 or not isinstance(scale, Mapping):
            raise CheckpointError(
                "optimizer state: expected a step count and a loss scale, found "
                f"step {step!r}, loss_scale {scale!r}"
            )
        self._step = step
        self._loss_scale.load_state(scale)
        with torch.no_grad():
            for bucket in self.buckets:
                # Their main parameters are not in the state: they are the model's in all but place.
                if bucket.shares_parameters and not bucket.stores_main:
                    bucket.refresh_main()

    @torch.no_grad()
    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copies what this process owns out of whole tensors, one after the other.

        Args:
            tensors: Name of a state tensor and values in the shape of the parameter. A tensor is
                not used any more when the next one is asked for.
        """
        own: dict[str, list[state.StatePiece]] = {}
        for piece in self.state_pieces():
            own.setdefault(piece.name, []).append(piece)
        for name, tensor in tensors:
            for piece in own.get(name, ()):
                flat = tensor.reshape(-1)
                piece.data.copy_(flat[piece.start : piece.start + piece.data.numel()])

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Copies a stored state into the live one. Nothing is changed when anything is wrong.

        Args:
            tensors: As `state_tensors` gave.
            values: As `state_values` gave.

        Raises:
            CheckpointError: Names every missing, unexpected or misshapen tensor.
        """
        state.check_state(self.buckets, tensors)
        self.load_values(values)
        self.load_tensors(tensors.items())

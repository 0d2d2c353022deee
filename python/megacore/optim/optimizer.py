"""Mixed-precision optimizer: flat groups, loss scale, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megacore.errors import CheckpointError, UsageError
from megacore.optim.buffers import FlatGroup
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.optim.groups import GroupRule, default_rule, split_parameters
from megacore.optim.loss_scale import LossScale, build_loss_scale
from megacore.optim.reductions import clip_coefficient, count_zeros, global_norm
from megacore.optim.schedule import Rates
from megacore.optim.updates import UpdateRule, build_update
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.layout import ParamLayout

MAIN_PARAM = "main_param"


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


class Optimizer:
    """Updates the parameters of a model from gradients summed in fp32 over micro-batches.

    Use, per iteration: `zero_grad()`; per micro-batch `backward(loss)`; then `step(rates)`.
    The parameters of the model become views of flat buffers, so load weights in place (`copy_`,
    `load_state_dict`), never by assigning new tensors.

    Args:
        groups: Flat groups, in a reproducible order.
        updates: The update rule of each.
        loss_scale: Scale of the loss.
        clip_grad: Largest global norm, 0 for no clipping.
    """

    def __init__(
        self,
        groups: list[FlatGroup],
        *,
        updates: list[UpdateRule],
        loss_scale: LossScale,
        clip_grad: float,
    ) -> None:
        self.groups = groups
        self._updates = updates
        self._loss_scale = loss_scale
        self._clip_grad = clip_grad
        self._step = 0
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
        """Sets the gradient sums to zero, in place."""
        for flat in self.groups:
            flat.zero_grad()

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
        starts as soon as its gradients are complete.

        Args:
            chunk_idx: Index among the chunks that `build_optimizer` was given.
        """

    def ready(self, param: nn.Parameter) -> None:
        """Tells that the gradient of a parameter was added to its `main_grad` by other means.

        Only for gradients that do not come from autograd (a deferred weight-gradient pass).
        """

    def finish_gradients(self) -> None:
        """Reduces what is not reduced yet and waits for all of it. `step` calls it."""

    @torch.no_grad()
    def step(
        self, rates: Rates, *, grad_divisor: float = 1.0, count_zero_grads: bool = False
    ) -> StepResult:
        """Unscales, checks, clips and updates, in one pass over the gradients and one update.

        Args:
            rates: Learning rates and weight decay of this step.
            grad_divisor: The sums are divided by it: the number of micro-batches, or of tokens.
            count_zero_grads: Count the gradient elements that are zero.

        Returns:
            What happened. When any gradient is not finite, in whatever precision, the step is
            skipped: an update would destroy the model beyond repair.

        Raises:
            RuntimeError: A gradient was moved out of its buffer.
        """
        for flat in self.groups:
            flat.check_gradients()
        unscale = 1.0 / (self._loss_scale.scale * grad_divisor)
        grad_norm = global_norm(flat.grad_flat for flat in self.groups) * unscale
        num_zeros = self._count_zeros() if count_zero_grads else None
        finite = math.isfinite(grad_norm)
        self._loss_scale.update(overflow=not finite)
        if not finite:
            return StepResult(updated=False, grad_norm=grad_norm, num_zeros=num_zeros)
        grad_scale = unscale * clip_coefficient(grad_norm, self._clip_grad)
        self._step += 1
        for flat, update in zip(self.groups, self._updates, strict=True):
            key = flat.group.key
            lr = rates.decoupled_lr if key.decoupled else rates.lr
            if lr is None:
                raise UsageError("the model has decoupled groups, but the rates have no such rate")
            update.step(
                lr=lr * key.lr_mult,
                weight_decay=rates.weight_decay * key.wd_mult,
                step=self._step,
                grad_scale=grad_scale,
            )
        return StepResult(updated=True, grad_norm=grad_norm, num_zeros=num_zeros)

    def _count_zeros(self) -> int:
        return sum(count_zeros(flat.grad_flat) - flat.num_padding for flat in self.groups)

    def params_norm(self) -> float:
        """L2 norm over the main parameters."""
        with torch.no_grad():
            return global_norm(flat.main_flat for flat in self.groups)

    def refresh_main_params(self) -> None:
        """Takes the main parameters from the model's; call after loading weights alone."""
        for flat in self.groups:
            flat.refresh_main()

    def state_tensors(self) -> dict[str, Tensor]:
        """Name -> fp32 view into the live state: `exp_avg.<parameter>` and so on.

        Main parameters are there (as `main_param.<parameter>`) unless they are the model's own.
        """
        tensors: dict[str, Tensor] = {}
        for flat, update in zip(self.groups, self._updates, strict=True):
            kinds = dict(update.state)
            if not flat.is_fp32:
                kinds = {MAIN_PARAM: flat.main_flat, **kinds}
            for kind, buffer in kinds.items():
                tensors.update((f"{kind}.{name}", view) for name, view in flat.views(buffer))
        return tensors

    def state_values(self) -> dict[str, Any]:
        """What `load_state` needs besides the tensors, as JSON values."""
        return {"step": self._step, "loss_scale": self._loss_scale.state_values()}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Restores `state_values`, after the tensors of `state_tensors` were filled in place.

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

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Copies a stored state into the live one. Nothing is changed when anything is wrong.

        Args:
            tensors: As `state_tensors` gave.
            values: As `state_values` gave.

        Raises:
            CheckpointError: Names every missing, unexpected or misshapen tensor.
        """
        mine = self.state_tensors()
        faults = [f"missing: {name}" for name in mine if name not in tensors]
        faults += [f"unexpected: {name}" for name in tensors if name not in mine]
        faults += [
            f"{name}: expected {list(view.shape)}, found {list(tensors[name].shape)}"
            for name, view in mine.items()
            if name in tensors and tensors[name].shape != view.shape
        ]
        if faults:
            raise CheckpointError(
                "the optimizer state does not fit this run:\n" + "\n".join(f"  {f}" for f in faults)
            )
        self.load_values(values)
        for name, view in mine.items():
            view.copy_(tensors[name])


Chunk = nn.Module | Mapping[str, nn.Parameter]
"""A model or pipeline stage, or its parameters by name."""


def build_optimizer(
    chunks: nn.Module | Sequence[Chunk],
    *,
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    rule: GroupRule | None = None,
    layouts: Mapping[str, ParamLayout] | None = None,
    groups: ParallelGroups | None = None,
    parallel: ParallelConfig | None = None,
    average_gradients: bool = True,
    tied_embeddings: bool = False,
) -> Optimizer:
    """The optimizer that the settings describe, around finished models.

    Args:
        chunks: The pipeline stages on this process, or one model. The parameters are moved into
            flat buffers.
        optimizer: Kind and constants.
        precision: Loss scaling; the dtypes are those of the parameters.
        rule: Gives each parameter its group, instead of `groups.default_rule`.
        layouts: How tensor parallelism cut each parameter; None for whole ones.
        groups: The groups of this process; None for a run of one process.
        parallel: Sharding, buckets and overlap; None for the defaults.
        average_gradients: Divide the gradients by the number of data and context parallel
            processes before they are summed; False for a loss per token, where the caller gives
            the number of tokens to `step`.
        tied_embeddings: The output layer of the last stage is a copy of the word embedding of the
            first, so that their gradients are summed.

    Raises:
        UsageError: The model has nothing to train, or settings do not go together.
        ValueError: A parameter is on the meta device or not floating point.
    """
    models = [chunks] if isinstance(chunks, nn.Module) else list(chunks)
    del layouts, parallel, average_gradients, tied_embeddings
    if groups is not None and groups.world_size > 1:
        raise UsageError("the optimizer does not work across processes yet")
    named = [
        pair
        for chunk in models
        for pair in (chunk.named_parameters() if isinstance(chunk, nn.Module) else chunk.items())
    ]
    rule = rule or default_rule(decoupled_lr=optimizer.decoupled_lr is not None)
    flats = [FlatGroup(group) for group in split_parameters(named, rule)]
    if not flats:
        raise UsageError("the model has no trainable parameter")
    return Optimizer(
        flats,
        updates=[build_update(flat, optimizer) for flat in flats],
        loss_scale=build_loss_scale(precision),
        clip_grad=optimizer.clip_grad,
    )

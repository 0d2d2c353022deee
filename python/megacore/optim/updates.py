"""The update rules, each over a part of a flat buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megacore.ops.adamw import adamw_reference, adamw_step
from megacore.ops.sgd import sgd_reference, sgd_step
from megacore.optim.config import OptimizerConfig

# Work in plain PyTorch goes through the buffers in pieces of this many elements, so that its
# scratch memory does not grow with the model and stays in cache.
CHUNK = 1 << 16


@dataclass(frozen=True)
class Flat:
    """Equally long one-dimensional tensors of one update.

    Attributes:
        main: Main parameters, updated.
        grad: Gradients, of the same dtype.
        model: Parameters of lower precision, written; or None where the main ones are the model's.
        state: What the rule keeps, by name.
    """

    main: Tensor
    grad: Tensor
    model: Tensor | None
    state: dict[str, Tensor]

    def part(self, part: slice) -> Flat:
        """A range of all of them."""
        return Flat(
            self.main[part],
            self.grad[part],
            None if self.model is None else self.model[part],
            {name: state[part] for name, state in self.state.items()},
        )

    def chunks(self) -> list[Flat]:
        """The whole in pieces of `CHUNK` elements."""
        return [
            self.part(slice(start, start + CHUNK)) for start in range(0, self.main.numel(), CHUNK)
        ]


class UpdateRule(Protocol):
    """How parameters follow from gradients."""

    names: tuple[str, ...]
    """Names of its state: tensors of the dtype of the main parameters, of zeros at first."""

    def step(
        self, flat: Flat, *, lr: float, weight_decay: float, step: int, grad_scale: float
    ) -> None:
        """Updates main and model parameters from the gradients times `grad_scale`."""


class AdamW:
    """Adam with decoupled weight decay; float64 in plain PyTorch, float32 by our kernel.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, config: OptimizerConfig) -> None:
        self._config = config

    def step(
        self, flat: Flat, *, lr: float, weight_decay: float, step: int, grad_scale: float
    ) -> None:
        """One pass over the tensors.

        Args:
            flat: What is updated.
            lr: Learning rate.
            weight_decay: Decoupled decay.
            step: Number of this update, from 1 (bias correction).
            grad_scale: Factor on the gradients: unscaling, averaging and clipping in one.
        """
        wide = flat.main.dtype == torch.float64
        update = adamw_reference if wide else adamw_step
        for piece in flat.chunks() if wide else (flat,):
            update(
                piece.main,
                piece.grad,
                piece.state["exp_avg"],
                piece.state["exp_avg_sq"],
                model_param=piece.model,
                lr=lr,
                beta1=self._config.adam_beta1,
                beta2=self._config.adam_beta2,
                eps=self._config.adam_eps,
                weight_decay=weight_decay,
                step=step,
                grad_scale=grad_scale,
            )


class Sgd:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    float64 in plain PyTorch, float32 by our kernel.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self._momentum = config.sgd_momentum
        self.names: tuple[str, ...] = ("momentum_buffer",) if self._momentum else ()

    def step(
        self, flat: Flat, *, lr: float, weight_decay: float, step: int, grad_scale: float
    ) -> None:
        """One pass over the tensors; `step` is not used."""
        del step
        wide = flat.main.dtype == torch.float64
        update = sgd_reference if wide else sgd_step
        for piece in flat.chunks() if wide else (flat,):
            update(
                piece.main,
                piece.grad,
                piece.state.get("momentum_buffer"),
                model_param=piece.model,
                lr=lr,
                momentum=self._momentum,
                weight_decay=weight_decay,
                grad_scale=grad_scale,
            )


def build_update(config: OptimizerConfig) -> UpdateRule:
    """The update rule that `--optimizer` names."""
    return Sgd(config) if config.optimizer == "sgd" else AdamW(config)

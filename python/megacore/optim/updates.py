"""The update rules, each over the flat buffers of one group."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from megacore.ops.adamw import adamw_step
from megacore.optim.buffers import FlatGroup
from megacore.optim.config import OptimizerConfig

# SGD works through the buffers in pieces of this many elements, so that its scratch memory does
# not grow with the model and stays in cache.
SGD_CHUNK = 1 << 16


class UpdateRule(Protocol):
    """An update of one group, and the state that it keeps."""

    state: dict[str, Tensor]
    """State name -> [n] float32, laid out like the group's main parameters."""

    def step(self, *, lr: float, weight_decay: float, step: int, grad_scale: float) -> None:
        """Updates main and model parameters from the gradient sums times `grad_scale`."""


class AdamW:
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    def __init__(self, flat: FlatGroup, config: OptimizerConfig) -> None:
        self._flat = flat
        self._config = config
        self.state = {
            "exp_avg": torch.zeros_like(flat.main_flat),
            "exp_avg_sq": torch.zeros_like(flat.main_flat),
        }

    def step(self, *, lr: float, weight_decay: float, step: int, grad_scale: float) -> None:
        """One pass over the buffers.

        Args:
            lr: Learning rate.
            weight_decay: Decoupled decay.
            step: Number of this update, from 1 (bias correction).
            grad_scale: Factor on the gradients: unscaling, averaging and clipping in one.
        """
        adamw_step(
            self._flat.main_flat,
            self._flat.grad_flat,
            self.state["exp_avg"],
            self.state["exp_avg_sq"],
            model_param=None if self._flat.is_fp32 else self._flat.model_flat,
            lr=lr,
            beta1=self._config.adam_beta1,
            beta2=self._config.adam_beta2,
            eps=self._config.adam_eps,
            weight_decay=weight_decay,
            step=step,
            grad_scale=grad_scale,
        )


class Sgd:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    def __init__(self, flat: FlatGroup, config: OptimizerConfig) -> None:
        self._flat = flat
        self._momentum = config.sgd_momentum
        self.state: dict[str, Tensor] = {}
        if self._momentum:
            self.state["momentum_buffer"] = torch.zeros_like(flat.main_flat)

    def step(self, *, lr: float, weight_decay: float, step: int, grad_scale: float) -> None:
        """One pass over the buffers; `step` is not used."""
        del step
        flat = self._flat
        for start in range(0, flat.main_flat.numel(), SGD_CHUNK):
            piece = slice(start, start + SGD_CHUNK)
            param = flat.main_flat[piece]
            update = flat.grad_flat[piece] * grad_scale
            if weight_decay:
                update.add_(param, alpha=weight_decay)
            if self._momentum:
                update = self.state["momentum_buffer"][piece].mul_(self._momentum).add_(update)
            param.add_(update, alpha=-lr)
            if not flat.is_fp32:
                flat.model_flat[piece].copy_(param)


def build_update(flat: FlatGroup, config: OptimizerConfig) -> UpdateRule:
    """The update rule that `--optimizer` names."""
    return Sgd(flat, config) if config.optimizer == "sgd" else AdamW(flat, config)

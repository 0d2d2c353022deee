"""Model, optimizer and schedule of a run: everything that training changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megacore.models.gpt import GPTModel
from megacore.optim import MicrobatchCalculator, Optimizer, ParamScheduler, build_optimizer
from megacore.optim.config import PrecisionConfig
from megacore.training.run_config import RunConfig


@dataclass(frozen=True)
class Learner:
    """What training changes, apart from counters and random states."""

    model: GPTModel
    optimizer: Optimizer
    scheduler: ParamScheduler


def parameter_dtype(precision: PrecisionConfig) -> torch.dtype:
    """Dtype of parameters and activations."""
    if precision.bf16:
        return torch.bfloat16
    return torch.float16 if precision.fp16 else torch.float32


def build_model(run: RunConfig, *, padded_vocab_size: int, device: torch.device) -> GPTModel:
    """The model on the device, its parameters not yet filled."""
    return GPTModel(
        run.model,
        padded_vocab_size=padded_vocab_size,
        recompute=run.recompute,
        dtype=parameter_dtype(run.precision),
        device=device,
        fp16_lm_cross_entropy=run.precision.fp16_lm_cross_entropy,
    )


def build_learner(run: RunConfig, model: GPTModel, batch_sizes: MicrobatchCalculator) -> Learner:
    """Optimizer and schedule around a model."""
    optimizer = build_optimizer(model, optimizer=run.optimizer, precision=run.precision)
    training = run.training
    # Evaluation alone may come without a length; its schedule is never read.
    iterations = None if training.train_samples else max(1, training.train_iters or 1)
    scheduler = ParamScheduler.build(
        run.schedule,
        optimizer=run.optimizer,
        global_batch_size=batch_sizes.max_global_batch_size,
        train_iters=iterations,
        train_samples=training.train_samples,
    )
    return Learner(model, optimizer, scheduler)

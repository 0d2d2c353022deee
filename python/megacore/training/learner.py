"""Model, optimizer and schedule of a run: everything that training changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megacore.models.gpt import GPTModel
from megacore.optim import MicrobatchCalculator, Optimizer, ParamScheduler, build_optimizer
from megacore.optim.config import PrecisionConfig
from megacore.parallel.apply import MakeModel, ParallelModel, build_parallel_model
from megacore.parallel.fp8 import Fp8Scaling, apply_fp8
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.pipeline_plan import WHOLE_MODEL, StagePlan, run_schedule, stage_plan
from megacore.parallel.random_streams import RandomStream
from megacore.training.run_config import RunConfig


@dataclass(frozen=True)
class Learner:
    """What training changes, apart from counters and random states.

    Attributes:
        model: This process's part of the model.
        optimizer: Updates it.
        scheduler: Says with which rates.
        fp8: Scales of 8-bit operands; None where products have none.
    """

    model: ParallelModel
    optimizer: Optimizer
    scheduler: ParamScheduler
    fp8: Fp8Scaling | None = None


def parameter_dtype(precision: PrecisionConfig) -> torch.dtype:
    """Dtype of parameters and activations."""
    if precision.bf16:
        return torch.bfloat16
    return torch.float16 if precision.fp16 else torch.float32


def plan_stages(
    run: RunConfig, batch_sizes: MicrobatchCalculator, groups: ParallelGroups
) -> StagePlan:
    """The pipeline stages of this process.

    Args:
        run: Resolved settings.
        batch_sizes: Says for how many micro-batches the schedule is.
        groups: The groups of this process.

    Raises:
        UsageError: There is no such schedule.
    """
    if groups.pp.size == 1:
        return WHOLE_MODEL
    num_microbatches = batch_sizes.at(0).num_microbatches
    schedule = run_schedule(run.parallel, run.model.total_depth or 0, num_microbatches)
    return stage_plan(schedule, groups.pp.rank)


def build_model(
    run: RunConfig,
    groups: ParallelGroups,
    *,
    make: MakeModel = GPTModel,
    plan: StagePlan = WHOLE_MODEL,
    padded_vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
    stream: RandomStream | None = None,
) -> ParallelModel:
    """This process's part of the model, on the device, with initial weights.

    Args:
        run: Resolved settings.
        groups: The groups of this process.
        make: Makes the whole model.
        plan: Its stages.
        padded_vocab_size: Rows of the word embedding.
        device: Where it goes.
        dtype: Of parameters and activations.
        stream: What tensor-parallel processes draw for themselves.
    """
    return build_parallel_model(
        run.model,
        make=make,
        parallel=run.parallel,
        groups=groups,
        plan=plan,
        padded_vocab_size=padded_vocab_size,
        recompute=run.recompute,
        dtype=dtype,
        device=device,
        seed=run.training.seed,
        fp16_lm_cross_entropy=run.precision.fp16_lm_cross_entropy,
        stream=stream,
        lora=run.lora,
    )


def build_learner(
    run: RunConfig,
    model: ParallelModel,
    batch_sizes: MicrobatchCalculator,
    groups: ParallelGroups,
) -> Learner:
    """Optimizer and schedule around a model.

    Raises:
        UsageError: The optimizer or the model cannot do what the settings ask for.
    """
    optimizer = build_optimizer(
        list(model.stages.values()),
        optimizer=run.optimizer,
        precision=run.precision,
        layouts=model.layouts,
        groups=groups,
        parallel=run.parallel,
        average_gradients=not run.training.calculate_per_token_loss,
        tied_embeddings=model.has_tied_copies,
    )
    if model.store is not None:
        model.store.on_ready = optimizer.ready
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
    fp8 = None
    if run.fp8.is_on:
        _, parameter = next(model.named_parameters())
        fp8 = apply_fp8(model.stages, run.fp8, groups, parameter.device)
    return Learner(model, optimizer, scheduler, fp8)

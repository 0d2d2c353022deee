"""Builds the optimizer of a run around its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from megacore.errors import UsageError
from megacore.optim.buffers import Bucket
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.optim.groups import Chunk, GroupRule, default_rule, trained_parameters
from megacore.optim.layout import BufferRules, build_buckets
from megacore.optim.loss_scale import build_loss_scale
from megacore.optim.optimizer import Optimizer, Reductions
from megacore.optim.shared_bucket import SharedBucket
from megacore.optim.updates import build_update
from megacore.parallel.config import ParallelConfig
from megacore.parallel.data import (
    DataGroups,
    GradientSync,
    ParameterSync,
    data_groups,
    default_bucket_size,
)
from megacore.parallel.groups import ParallelGroups, single_process_groups
from megacore.parallel.layout import ParamLayout
from megacore.parallel.sharded_data import GradientScatter, ParameterShards
from megacore.parallel.units import gather_while_used, units, wait_before_use

AnyBucket = TypeVar("AnyBucket", bound=Bucket)


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

    All processes of a run call it, with the chunks of their pipeline stages.

    Args:
        chunks: The pipeline stages on this process, or one model. The parameters are moved into
            flat buffers. A parameter that two stages share must be in both.
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
        ValueError: A parameter is not floating point.
    """
    models = [chunks] if isinstance(chunks, nn.Module) else list(chunks)
    groups = groups or single_process_groups()
    parallel = parallel or ParallelConfig()
    rule = rule or default_rule(decoupled_lr=optimizer.decoupled_lr is not None)
    params = trained_parameters(
        models, rule, layouts=layouts, groups=groups, tied_embeddings=tied_embeddings
    )
    if not params:
        raise UsageError("the model has no trainable parameter")
    data = data_groups(groups, parallel)
    rules = _buffer_rules(data, parallel, precision)
    by_chunk = [
        build_buckets(
            [p for p in params if p.chunks[0] == chunk_idx],
            rules,
            _units(model) if rules.share_parameters else None,
        )
        for chunk_idx, model in enumerate(models)
    ]
    shared = [[b for b in chunk if isinstance(b, SharedBucket)] for chunk in by_chunk]
    if rules.share_gradients:
        reductions = _sharing_reductions(
            models, shared, groups, data, parallel, average=average_gradients
        )
    else:
        reductions = _reductions(
            models,
            by_chunk,
            groups,
            data,
            parallel,
            average=average_gradients,
            fused=precision.gradient_accumulation_fusion,
        )
    return Optimizer(
        [bucket for chunk in by_chunk for bucket in chunk],
        update=build_update(optimizer),
        loss_scale=build_loss_scale(precision),
        clip_grad=optimizer.clip_grad,
        reductions=reductions,
    )


def _units(model: Chunk) -> dict[int, tuple[int, bool]]:
    """id of a parameter -> number of its part of the model, and whether that is a layer."""
    found: dict[int, tuple[int, bool]] = {}
    for number, unit in enumerate(units(_module(model))):
        for param in unit.parameters():
            found.setdefault(id(param), (number, unit.is_layer))
    return found


def _module(model: Chunk) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UsageError("gathering parameters during forward needs modules, not parameters")
    return model


def _buffer_rules(
    data: DataGroups, parallel: ParallelConfig, precision: PrecisionConfig
) -> BufferRules:
    # A group of one shares nothing.
    strategy = parallel.data_parallel_sharding_strategy if data.shard.size > 1 else "no_shard"
    bucket_size = 0
    if data.size > 1:
        bucket_size = parallel.ddp_bucket_size or default_bucket_size(data.size)
    return BufferRules(
        bucket_size=bucket_size,
        num_shards=data.shard.size,
        shard=data.shard.rank,
        half_gradients=not precision.accumulate_allreduce_grads_in_fp32,
        share_gradients=strategy in ("optim_grads", "optim_grads_params"),
        share_parameters=strategy == "optim_grads_params",
    )


def _reductions(
    models: Sequence[Chunk],
    by_chunk: Sequence[Sequence[Bucket]],
    groups: ParallelGroups,
    data: DataGroups,
    parallel: ParallelConfig,
    *,
    average: bool,
    fused: bool,
) -> Reductions:
    """What is exchanged when every process has all gradients and parameters."""
    buckets = [bucket for chunk in by_chunk for bucket in chunk]
    gradients = _gradient_sync(by_chunk, data, parallel, average=average)
    notify = gradients.added if gradients.overlap else None
    for bucket in buckets:
        bucket.watch_gradients(notify=notify, fused=fused)
    overlap_gather = parallel.overlap_param_gather and data.shard.size > 1
    parameters = _parameter_sync(models, by_chunk, data, overlap=overlap_gather)
    return Reductions(
        groups=groups,
        data=data,
        gradients=gradients,
        parameters=parameters,
        overlap_gather=overlap_gather,
    )


def _sharing_reductions(
    models: Sequence[Chunk],
    by_chunk: Sequence[Sequence[SharedBucket]],
    groups: ParallelGroups,
    data: DataGroups,
    parallel: ParallelConfig,
    *,
    average: bool,
) -> Reductions:
    """What is exchanged when each process keeps a part of the gradients, perhaps of parameters."""
    buckets = [bucket for chunk in by_chunk for bucket in chunk]
    parameters: ParameterSync | ParameterShards
    shards = None
    if buckets[0].shares_parameters:
        parameters = shards = ParameterShards(
            [list(reversed(chunk)) for chunk in by_chunk],
            data.shard,
            prefetch=parallel.overlap_param_gather,
        )
        bucket_of = _buckets_of(by_chunk)
        for model in models:
            gather_while_used(_module(model), bucket_of, shards)
    else:
        overlap = parallel.overlap_param_gather
        parameters = _parameter_sync(models, by_chunk, data, overlap=overlap)
    gradients = GradientScatter(
        buckets,
        data=data,
        average=average,
        average_in_collective=parallel.ddp_average_in_collective,
        overlap=parallel.overlap_grad_reduce,
        shards=shards,
    )
    for bucket in buckets:
        for param in bucket.parameters:
            param.register_post_accumulate_grad_hook(gradients.added)
    return Reductions(
        groups=groups,
        data=data,
        gradients=gradients,
        parameters=parameters,
        overlap_gather=shards is not None or parallel.overlap_param_gather,
    )


def _parameter_sync(
    models: Sequence[Chunk],
    by_chunk: Sequence[Sequence[Bucket]],
    data: DataGroups,
    *,
    overlap: bool,
) -> ParameterSync:
    """Gathers updated parameters; with `overlap` each module waits for its own before it runs."""
    # Forward goes through the buckets of a chunk backwards.
    parameters = ParameterSync([b for chunk in by_chunk for b in reversed(chunk)], data.shard)
    if overlap:
        bucket_of = _buckets_of(by_chunk)
        for model in models:
            wait_before_use(_module(model), bucket_of, parameters)
    return parameters


def _buckets_of(by_chunk: Sequence[Sequence[AnyBucket]]) -> dict[int, AnyBucket]:
    """Identity of a parameter -> its bucket."""
    return {id(p): bucket for chunk in by_chunk for bucket in chunk for p in bucket.parameters}


def _gradient_sync(
    by_chunk: Sequence[Sequence[Bucket]],
    data: DataGroups,
    parallel: ParallelConfig,
    *,
    average: bool,
) -> GradientSync:
    def is_shared(bucket: Bucket) -> bool:
        return any(param.is_shared for param in bucket.params)

    return GradientSync(
        [[b for b in chunk if not is_shared(b)] for chunk in by_chunk],
        late=[b for chunk in by_chunk for b in chunk if is_shared(b)],
        data=data,
        average=average,
        average_in_collective=parallel.ddp_average_in_collective,
        overlap=parallel.overlap_grad_reduce,
    )

"""What the flags of parallelism ask of the model, of the batch and of the world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacore._C import pipeline
from megacore.config.faults import fault
from megacore.errors import Fault
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.parallel.config import V_SCHEDULES, ParallelConfig
from megacore.parallel.grid import make_grid

if TYPE_CHECKING:
    from megacore.training.config import BatchConfig


def grid_faults(parallel: ParallelConfig) -> Iterator[Fault]:
    """Degrees that do not divide the world, and orders that leave an axis out."""
    degrees: dict[str, object] = {
        "--tensor-model-parallel-size": parallel.tensor_model_parallel_size,
        "--context-parallel-size": parallel.context_parallel_size,
        "--pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
        "--expert-model-parallel-size": parallel.expert_model_parallel_size,
    }
    used = {name: value for name, value in degrees.items() if value != 1}
    size = parallel.model_parallel_size
    if parallel.world_size % size:
        yield fault(
            "MC0901",
            {**used, "processes": parallel.world_size},
            allowed=f"a number of processes that is a multiple of {size}",
        )
        return
    # The experts of a stage are split over its processes, over whole replicas of other layers.
    replicas = parallel.world_size // parallel.pipeline_model_parallel_size
    replicas //= parallel.tensor_model_parallel_size
    if replicas % parallel.expert_model_parallel_size:
        given = {**used, "processes": parallel.world_size}
        allowed = f"--expert-model-parallel-size a divisor of {replicas}"
        yield fault("MC0901", given, allowed=allowed)
        return
    try:
        make_grid(parallel)
    except ValueError as error:
        name = "--use-tp-pp-dp-mapping" if parallel.use_tp_pp_dp_mapping else "--order"
        shown = "" if parallel.use_tp_pp_dp_mapping else parallel.axis_order
        yield fault("MC0903", {name: shown, **used}, more=str(error))


def model_faults(
    parallel: ParallelConfig,
    model: ModelConfig,
    recompute: RecomputeConfig,
    seq_length: int | None,
) -> Iterator[Fault]:
    """Sizes of the model that the degrees do not divide.

    Args:
        parallel: Degrees.
        model: Architecture, resolved or not.
        recompute: Recompute.
        seq_length: Tokens of a sequence, if known.
    """
    yield from _tensor_faults(parallel, model)
    yield from _context_faults(parallel, model)
    yield from _layer_faults(parallel, model)
    yield from _sequence_faults(parallel, seq_length)
    if parallel.distribute_saved_activations and recompute.recompute_granularity != "full":
        given = {
            "--distribute-saved-activations": "",
            "--recompute-granularity": recompute.recompute_granularity,
        }
        yield fault("MC0913", given, allowed="--recompute-granularity full")


def _tensor_faults(parallel: ParallelConfig, model: ModelConfig) -> Iterator[Fault]:
    degree = parallel.tensor_model_parallel_size
    shown: dict[str, object] = {"--tensor-model-parallel-size": degree}
    sizes: dict[str, int | None] = {
        "--num-attention-heads": model.num_attention_heads,
        "--ffn-hidden-size": model.ffn_hidden_size,
    }
    if model.group_query_attention:
        sizes["--num-query-groups"] = model.num_query_groups
    for name, size in sizes.items():
        if size is not None and size % degree:
            yield fault(
                "MC0914", {name: size, **shown}, allowed=f"a multiple of {degree}", more=name
            )
    heads = model.num_query_groups if model.group_query_attention else model.num_attention_heads
    parts = degree * parallel.context_parallel_size
    by_heads = parallel.cp_comm_type == "a2a" and parallel.context_parallel_size > 1
    if by_heads and heads is not None and heads % degree == 0 and heads % parts:
        name = "--num-query-groups" if model.group_query_attention else "--num-attention-heads"
        given = {
            name: heads,
            **shown,
            "--context-parallel-size": parallel.context_parallel_size,
            "--cp-comm-type": "a2a",
        }
        yield fault("MC0916", given, allowed=f"a multiple of {parts}, or --cp-comm-type p2p")


def _context_faults(parallel: ParallelConfig, model: ModelConfig) -> Iterator[Fault]:
    degree = parallel.context_parallel_size
    if degree == 1:
        return
    if model.scaling_kind == "longrope":
        given: dict[str, object] = {
            "--rope-scaling-type": "longrope",
            "--context-parallel-size": degree,
        }
        yield fault("MC0117", given, allowed="--context-parallel-size 1")
    values: dict[str, object] = {
        "--window-size": model.window_size,
        "--attn-logit-softcapping": model.attn_logit_softcapping,
        "--softmax-scale": model.softmax_scale,
    }
    for name, value in values.items():
        if value is not None and parallel.cp_comm_type == "p2p":
            given = {name: value, "--context-parallel-size": degree, "--cp-comm-type": "p2p"}
            yield fault("MC0116", given, allowed="--cp-comm-type a2a")


def _layer_faults(parallel: ParallelConfig, model: ModelConfig) -> Iterator[Fault]:
    ranks, layers = parallel.pipeline_model_parallel_size, model.total_depth
    if parallel.pipeline_model_parallel_split_rank is not None:
        yield from _split_faults(parallel, model)
        return
    if layers is None or layers < 1 or ranks == 1 or parallel.pipeline_schedule_file is not None:
        return
    given: dict[str, object] = {"--num-layers": layers, "--pipeline-model-parallel-size": ranks}
    if layers != model.depth:
        given = {"layers of encoder and decoder": layers, "--pipeline-model-parallel-size": ranks}
    first = parallel.decoder_first_pipeline_num_layers
    last = parallel.decoder_last_pipeline_num_layers
    if parallel.standalone_embedding_stage:
        given["--standalone-embedding-stage"] = ""
        if first is not None:
            given["--decoder-first-pipeline-num-layers"] = first
            yield fault("MC0924", given, allowed="one of the last two")
            return
        first = 0
    elif first is not None:
        given["--decoder-first-pipeline-num-layers"] = first
    if last is not None:
        given["--decoder-last-pipeline-num-layers"] = last
    per_stage = parallel.num_layers_per_virtual_pipeline_stage
    if parallel.schedule_name in V_SCHEDULES:
        given["--pipeline-schedule"] = parallel.schedule_name
        ranks *= 2
    elif per_stage is not None:
        given["--num-layers-per-virtual-pipeline-stage"] = per_stage
        if layers % (ranks * per_stage):
            allowed = f"--num-layers a multiple of {ranks} * {per_stage}"
            yield fault("MC0925", given, allowed=allowed)
        return
    rest = layers - (first or 0) - (last or 0)
    others = ranks - (first is not None) - (last is not None)
    if rest < 0 or (rest % others if others else rest):
        allowed = f"{rest} layers left for {others} stages must be equally many"
        if first is None and last is None:
            allowed = f"--num-layers a multiple of {ranks}"
        yield fault("MC0925", given, allowed=allowed)


def _split_faults(parallel: ParallelConfig, model: ModelConfig) -> Iterator[Fault]:
    """An encoder on the first ranks of a pipeline, a decoder on the others."""
    split, ranks = (
        parallel.pipeline_model_parallel_split_rank,
        parallel.pipeline_model_parallel_size,
    )
    given: dict[str, object] = {"--pipeline-model-parallel-split-rank": split}
    if model.model_family != "t5":
        yield fault("MC1320", {"--model-family": model.model_family, **given}, allowed="t5")
        return
    if split is None or model.depth is None:
        return
    given["--pipeline-model-parallel-size"] = ranks
    if not 0 < split < ranks:
        yield fault("MC1323", given, allowed=f"a rank from 1 to {ranks - 1}")
        return
    others: dict[str, object] = {
        "--num-layers-per-virtual-pipeline-stage": parallel.num_layers_per_virtual_pipeline_stage,
        "--decoder-first-pipeline-num-layers": parallel.decoder_first_pipeline_num_layers,
        "--decoder-last-pipeline-num-layers": parallel.decoder_last_pipeline_num_layers,
        "--standalone-embedding-stage": parallel.standalone_embedding_stage or None,
        "--pipeline-schedule-file": parallel.pipeline_schedule_file,
        "--pipeline-schedule": (
            parallel.schedule_name if parallel.schedule_name in V_SCHEDULES else None
        ),
    }
    for name, value in others.items():
        if value is not None:
            yield fault("MC1323", {**given, name: value}, allowed="one of them")
    for name, layers, stages in (
        ("--num-layers", model.depth, split),
        ("--decoder-num-layers", model.decoder_num_layers or model.depth, ranks - split),
    ):
        if layers % stages:
            yield fault("MC1323", {**given, name: layers}, allowed=f"a multiple of {stages}")


def _sequence_faults(parallel: ParallelConfig, length: int | None) -> Iterator[Fault]:
    context, tensor = parallel.context_parallel_size, parallel.tensor_model_parallel_size
    if length is None:
        return
    given: dict[str, object] = {"--seq-length": length}
    unit = 2 * context if context > 1 else 1
    if length % unit:
        given["--context-parallel-size"] = context
        yield fault("MC0915", given, allowed=f"a multiple of 2 * {context}")
    elif parallel.sequence_parallel and (length // context) % tensor:
        if context > 1:
            given["--context-parallel-size"] = context
        given |= {"--sequence-parallel": "", "--tensor-model-parallel-size": tensor}
        yield fault("MC0915", given, allowed=f"a multiple of {context} * {tensor}")


def schedule_faults(
    parallel: ParallelConfig, batch: BatchConfig, layers: int | None
) -> Iterator[Fault]:
    """Numbers of microbatches that the pipeline schedule cannot be made for, with its reason.

    Args:
        parallel: Degrees and schedule.
        batch: Batch sizes.
        layers: Layers of the model, if known.
    """
    ranks, named = parallel.pipeline_model_parallel_size, parallel.schedule_name
    if ranks == 1 or layers is None or parallel.pipeline_schedule_file is not None:
        return
    unit = (batch.micro_batch_size or 0) * parallel.data_parallel_size
    total = batch.global_batch_size or unit
    sizes = [total]
    if batch.rampup_batch_size is not None and len(batch.rampup_batch_size) == 3:
        sizes.insert(0, batch.rampup_batch_size[0])
    chunks = parallel.stages_per_rank(layers) if named == "interleaved" else 0
    for size in sizes:
        count = size // unit if unit else 0
        reason = _schedule_refusal(named, ranks, count, chunks) if count else None
        if reason is not None:
            given = {
                "--pipeline-schedule": named,
                "--pipeline-model-parallel-size": ranks,
                "microbatches": f"{count} (batch {size} / micro-batch {batch.micro_batch_size} / "
                f"replicas {parallel.data_parallel_size})",
            }
            yield fault("MC0926", given, more=reason)


def _schedule_refusal(name: str, ranks: int, microbatches: int, chunks: int) -> str | None:
    """Why there is no schedule for this number of microbatches, or None."""
    # Beyond a few rounds only the remainder decides, and a short schedule is made at once.
    rounds = 2 * ranks
    few = microbatches if microbatches < 4 * rounds else 3 * rounds + microbatches % rounds
    try:
        pipeline.make_schedule(name, num_ranks=ranks, num_microbatches=few, num_chunks=chunks)
    except ValueError as short:
        if few == microbatches:
            return str(short)
        try:
            pipeline.make_schedule(
                name, num_ranks=ranks, num_microbatches=microbatches, num_chunks=chunks
            )
        except ValueError as error:
            return str(error)
    return None

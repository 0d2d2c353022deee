"""Degrees and kinds of parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import refuse, value_faults
from megacore.errors import Fault

DEFAULT_ORDER = "tp-cp-ep-dp-pp"
SCHEDULES = (
    "1f1b",
    "gpipe",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "zb-v",
    "v-half",
    "v-min",
    "dualpipe",
    "dualpipev",
)
# Two stages on every rank, the second half of them in reverse order.
V_SCHEDULES = ("zb-v", "v-half", "v-min", "dualpipev")
# Weight gradients are computed apart from those of the inputs.
SPLIT_SCHEDULES = ("zb-h1", "zb-h2", *V_SCHEDULES, "dualpipe")
SHARDING_STRATEGIES = ("no_shard", "optim", "optim_grads", "optim_grads_params")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run is spread over processes.

    Attributes:
        world_size: Number of processes: that of the launcher, or of `--simulate-world`.
    """

    GROUP: ClassVar[str] = "parallel"

    world_size: int = 1

    tensor_model_parallel_size: int = flag(
        "--tensor-model-parallel-size",
        default=1,
        help="parts that each weight matrix is split into",
        bounds="[1, inf)",
    )
    pipeline_model_parallel_size: int = flag(
        "--pipeline-model-parallel-size",
        default=1,
        help="ranks that the layers are split over",
        bounds="[1, inf)",
    )
    context_parallel_size: int = flag(
        "--context-parallel-size",
        default=1,
        help="parts that each sequence is split into; the sequence must divide by 2 * this",
        bounds="[1, inf)",
    )
    expert_model_parallel_size: int = flag(
        "--expert-model-parallel-size",
        default=1,
        help="parts that the experts are split into",
        bounds="[1, inf)",
    )
    order: str | None = flag(
        "--order",
        default=None,
        help=f"axes from the fastest varying to the slowest; default {DEFAULT_ORDER}",
    )
    use_tp_pp_dp_mapping: bool = flag(
        "--use-tp-pp-dp-mapping",
        default=False,
        help="the same as --order tp-pp-dp; without context and expert parallelism",
    )
    sequence_parallel: bool = flag(
        "--sequence-parallel",
        default=False,
        help="norms, dropout and the residual stream split along the sequence over the "
        "tensor-parallel ranks",
    )
    async_tensor_model_parallel_allreduce: bool = flag(
        "--no-async-tensor-model-parallel-allreduce",
        default=True,
        help="reduce input gradients before, not during, the weight-gradient product",
    )
    tp_comm_overlap: bool = flag(
        "--tp-comm-overlap",
        default=False,
        help="pipeline gathers and reduce-scatters with the products; needs --sequence-parallel",
    )
    tp_comm_overlap_ag: bool = flag(
        "--disable-tp-comm-overlap-ag",
        default=True,
        help="with --tp-comm-overlap: do not pipeline all-gather and product",
    )
    tp_comm_overlap_rs: bool = flag(
        "--disable-tp-comm-overlap-rs",
        default=True,
        help="with --tp-comm-overlap: do not pipeline product and reduce-scatter",
    )
    tp_comm_overlap_rs_dgrad: bool = flag(
        "--tp-comm-overlap-rs-dgrad",
        default=False,
        help="with --tp-comm-overlap: reduce-scatter input gradients in a pipeline with the "
        "product that makes them, not beside the weight gradient",
    )
    tp_comm_bulk_dgrad: bool = flag(
        "--disable-tp-comm-bulk-dgrad",
        default=True,
        help="with --sequence-parallel: gather inputs again before, not during, the "
        "input-gradient product",
    )
    tp_comm_bulk_wgrad: bool = flag(
        "--disable-tp-comm-bulk-wgrad",
        default=True,
        help="with --sequence-parallel: reduce-scatter input gradients before, not during, the "
        "weight-gradient product",
    )
    cp_comm_type: str = flag(
        "--cp-comm-type",
        default="p2p",
        choices=("p2p", "a2a"),
        help="keys and values sent around a ring, or heads exchanged by all-to-all (Ulysses)",
    )
    distribute_saved_activations: bool = flag(
        "--distribute-saved-activations",
        default=False,
        help="split the kept inputs of recomputed layers over the tensor-parallel ranks; needs "
        "--recompute-granularity full and no --sequence-parallel",
    )
    pipeline_schedule: str | None = flag(
        "--pipeline-schedule",
        default=None,
        choices=SCHEDULES,
        help="default 1f1b, or interleaved with --num-layers-per-virtual-pipeline-stage",
    )
    pipeline_schedule_file: str | None = flag(
        "--pipeline-schedule-file",
        default=None,
        help="CSV file with a schedule: one row per rank, cells such as 0F3",
    )
    num_layers_per_virtual_pipeline_stage: int | None = flag(
        "--num-layers-per-virtual-pipeline-stage",
        default=None,
        help="several stages per rank, each with this many layers",
        bounds="[1, inf)",
    )
    decoder_first_pipeline_num_layers: int | None = flag(
        "--decoder-first-pipeline-num-layers",
        default=None,
        help="layers of the first stage, when it differs",
        bounds="[0, inf)",
    )
    decoder_last_pipeline_num_layers: int | None = flag(
        "--decoder-last-pipeline-num-layers",
        default=None,
        help="layers of the last stage, when it differs",
        bounds="[0, inf)",
    )
    standalone_embedding_stage: bool = flag(
        "--standalone-embedding-stage",
        default=False,
        help="the first stage holds the embedding and no layer",
    )
    pipeline_model_parallel_split_rank: int | None = flag(
        "--pipeline-model-parallel-split-rank",
        default=None,
        help="T5: pipeline ranks before this one hold the encoder, the others the decoder; default "
        "all layers together in equal parts",
        bounds="[1, inf)",
    )
    overlap_p2p_comm: bool = flag(
        "--no-overlap-p2p-communication",
        default=True,
        help="wait for each send and receive between stages before computing on",
    )
    variable_seq_lengths: bool = flag(
        "--variable-seq-lengths",
        default=False,
        help="stages tell each other the shape of every activation",
    )
    use_distributed_optimizer: bool = flag(
        "--use-distributed-optimizer",
        default=False,
        help="optimizer state and fp32 parameters split over the replicas (ZeRO-1)",
    )
    data_parallel_sharding_strategy: str = flag(
        "--data-parallel-sharding-strategy",
        default="no_shard",
        choices=SHARDING_STRATEGIES,
        help="what the replicas split: nothing, optimizer state (as --use-distributed-optimizer), "
        "gradients too, parameters too",
    )
    num_distributed_optimizer_instances: int = flag(
        "--num-distributed-optimizer-instances",
        default=1,
        help="groups of replicas that each hold one whole sharded copy",
        bounds="[1, inf)",
    )
    overlap_grad_reduce: bool = flag(
        "--overlap-grad-reduce",
        default=False,
        help="reduce each bucket of gradients during backward",
    )
    ddp_bucket_size: int | None = flag(
        "--ddp-bucket-size",
        default=None,
        help="elements of a bucket; default max(40e6, 1e6 * replicas)",
        bounds="[1, inf)",
    )
    ddp_average_in_collective: bool = flag(
        "--ddp-average-in-collective",
        default=False,
        help="average in the collective instead of scaling before it",
    )
    overlap_param_gather: bool = flag(
        "--overlap-param-gather",
        default=False,
        help="gather each bucket of parameters during forward; needs the distributed optimizer "
        "and --overlap-grad-reduce",
    )
    distributed_backend: str | None = flag(
        "--distributed-backend",
        default=None,
        choices=("nccl", "gloo"),
        help="transport of torch.distributed; default nccl on GPUs, gloo on CPUs",
    )
    distributed_timeout_minutes: int = flag(
        "--distributed-timeout-minutes",
        default=10,
        help="longest time that an operation between processes may take",
        bounds="[1, inf)",
    )
    distributed_timeout_seconds: float | None = flag(
        "--distributed-timeout-seconds",
        default=None,
        help="the same in seconds; wins over the minutes",
        bounds="(0, inf)",
    )
    check_collectives: bool = flag(
        "--check-collectives",
        default=False,
        help="compare operation, shape and dtype on all ranks before each collective; slow",
    )
    simulate_world: int | None = flag(
        "--simulate-world",
        default=None,
        help="check the run as if it had this many processes, on meta tensors, and report",
        bounds="[1, 1048576]",
    )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model together."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model, at least one."""
        return max(1, self.world_size // max(1, self.model_parallel_size))

    @property
    def axis_order(self) -> str:
        """The order of axes, whichever of its two flags was given."""
        if self.order is None and self.use_tp_pp_dp_mapping:
            return "tp-pp-dp"
        return self.order or DEFAULT_ORDER

    @property
    def shards_optimizer(self) -> bool:
        """Whether the replicas split the optimizer state, or more."""
        return self.use_distributed_optimizer or self.data_parallel_sharding_strategy != "no_shard"

    @property
    def schedule_name(self) -> str:
        """Name of the pipeline schedule, where it is not read from a file."""
        if self.pipeline_schedule is not None:
            return self.pipeline_schedule
        virtual = self.num_layers_per_virtual_pipeline_stage is not None
        return "interleaved" if virtual else "1f1b"

    @property
    def timeout(self) -> timedelta:
        """Longest time that an operation between processes may take."""
        if self.distributed_timeout_seconds is not None:
            return timedelta(seconds=self.distributed_timeout_seconds)
        return timedelta(minutes=self.distributed_timeout_minutes)

    def stages_per_rank(self, num_layers: int) -> int:
        """Stages of one chain that each rank holds; 1 without virtual stages.

        Args:
            num_layers: Layers of the model; divisible as the flags ask.
        """
        if self.schedule_name in V_SCHEDULES:
            return 2
        per_stage = self.num_layers_per_virtual_pipeline_stage
        if per_stage is None:
            return 1
        return max(1, num_layers // (self.pipeline_model_parallel_size * per_stage))

    def faults(self) -> Iterator[Fault]:
        """Rules that these values break by themselves."""
        yield from value_faults(self)
        if self.order is not None and self.use_tp_pp_dp_mapping:
            given: dict[str, object] = {"--order": self.order, "--use-tp-pp-dp-mapping": ""}
            yield fault("MC0902", given, allowed="one of them")
        yield from self._tensor_faults()
        yield from self._pipeline_faults()
        yield from self._data_faults()

    def _tensor_faults(self) -> Iterator[Fault]:
        degree = {"--tensor-model-parallel-size": self.tensor_model_parallel_size}
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            yield fault("MC0911", {"--sequence-parallel": "", **degree}, allowed="at least 2")
        if self.tp_comm_overlap and not self.sequence_parallel:
            yield fault("MC0912", {"--tp-comm-overlap": ""}, allowed="--sequence-parallel too")
        if self.distribute_saved_activations:
            if self.tensor_model_parallel_size == 1:
                given = {"--distribute-saved-activations": "", **degree}
                yield fault("MC0913", given, allowed="at least 2")
            if self.sequence_parallel:
                given = {"--distribute-saved-activations": "", "--sequence-parallel": ""}
                yield fault("MC0913", given, allowed="one of them")

    def _pipeline_faults(self) -> Iterator[Fault]:
        given: dict[str, object] = {}
        virtual = self.num_layers_per_virtual_pipeline_stage
        if virtual is not None:
            given["--num-layers-per-virtual-pipeline-stage"] = virtual
        if self.pipeline_schedule_file is not None:
            if self.pipeline_schedule is not None or given:
                named = self.pipeline_schedule
                given |= {} if named is None else {"--pipeline-schedule": named}
                given["--pipeline-schedule-file"] = self.pipeline_schedule_file
                yield fault("MC0922", given, allowed="one of them")
            return
        if self.pipeline_model_parallel_size == 1:
            size: dict[str, object] = {"--pipeline-model-parallel-size": 1}
            if self.pipeline_schedule is not None:
                given["--pipeline-schedule"] = self.pipeline_schedule
            for name, value in self._uneven().items():
                given[name] = value
            if given:
                yield fault("MC0921", {**given, **size}, allowed="at least 2")
            return
        named = self.schedule_name
        if (named == "interleaved") != (virtual is not None):
            shown = {"--pipeline-schedule": named, **given}
            shown.setdefault("--num-layers-per-virtual-pipeline-stage", None)
            yield fault("MC0923", shown)
        uneven = self._uneven()
        if uneven and (virtual is not None or named in V_SCHEDULES):
            yield fault("MC0924", {**uneven, "--pipeline-schedule": named})

    def _uneven(self) -> dict[str, object]:
        """The flags that give some stage another number of layers."""
        given: dict[str, object] = {}
        if self.decoder_first_pipeline_num_layers is not None:
            given["--decoder-first-pipeline-num-layers"] = self.decoder_first_pipeline_num_layers
        if self.decoder_last_pipeline_num_layers is not None:
            given["--decoder-last-pipeline-num-layers"] = self.decoder_last_pipeline_num_layers
        if self.standalone_embedding_stage:
            given["--standalone-embedding-stage"] = ""
        return given

    def _data_faults(self) -> Iterator[Fault]:
        strategy = self.data_parallel_sharding_strategy
        if self.overlap_param_gather and not (self.shards_optimizer and self.overlap_grad_reduce):
            needs = "--use-distributed-optimizer and --overlap-grad-reduce too"
            yield fault("MC0931", {"--overlap-param-gather": ""}, allowed=needs)
        pipelined = self.pipeline_model_parallel_size > 1
        if strategy in ("optim_grads", "optim_grads_params") and pipelined:
            name, file = self.schedule_name, self.pipeline_schedule_file
            if file is not None or name in SPLIT_SCHEDULES:
                shown = {"--data-parallel-sharding-strategy": strategy}
                schedule = {"--pipeline-schedule": name, "--pipeline-schedule-file": file}
                kept = {flag: value for flag, value in schedule.items() if value is not None}
                yield fault("MC0933", {**shown, **kept}, allowed="1f1b, gpipe or interleaved")
        instances = self.num_distributed_optimizer_instances
        given: dict[str, object] = {"--num-distributed-optimizer-instances": instances}
        if instances > 1 and not self.shards_optimizer:
            allowed = "1, or --use-distributed-optimizer too"
            yield fault(
                "MC0932", {**given, "--data-parallel-sharding-strategy": strategy}, allowed=allowed
            )
        replicas = self.data_parallel_size * self.context_parallel_size
        if instances > 0 and replicas % instances:
            yield fault(
                "MC0932", {**given, "replicas": replicas}, allowed=f"a divisor of {replicas}"
            )

    def resolved(self) -> ParallelConfig:
        """A copy in which the schedule, the order and the sharding strategy say everything.

        Raises:
            ConfigError: The values break a rule.
        """
        refuse(self.faults())
        strategy = self.data_parallel_sharding_strategy
        if strategy == "no_shard" and self.use_distributed_optimizer:
            strategy = "optim"
        return replace(
            self,
            order=self.axis_order,
            use_tp_pp_dp_mapping=False,
            data_parallel_sharding_strategy=strategy,
            use_distributed_optimizer=self.shards_optimizer,
        )

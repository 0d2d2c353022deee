"""Degrees of parallelism and the transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; only 1 is supported so far, other values are refused."""

    GROUP: ClassVar[str] = "parallel"

    sequence_parallel: bool = flag(
        "--sequence-parallel",
        default=False,
        help="shard LN/dropout activations along sequence over TP; silently off for TP=1",
    )
    tensor_model_parallel_size: int = flag(
        "--tensor-model-parallel-size", default=1, help="TP degree"
    )
    pipeline_model_parallel_size: int = flag(
        "--pipeline-model-parallel-size", default=1, help="(decoder) PP degree"
    )
    distributed_backend: str = flag(
        "--distributed-backend",
        default="nccl",
        choices=("nccl", "gloo"),
        help="torch.distributed backend",
    )
    distributed_timeout_minutes: int = flag(
        "--distributed-timeout-minutes", default=10, help="collective timeout"
    )
    overlap_grad_reduce: bool = flag(
        "--overlap-grad-reduce", default=False, help="overlap DP reduction with backward"
    )
    overlap_param_gather: bool = flag(
        "--overlap-param-gather",
        default=False,
        help="overlap dist-opt param all-gather with forward",
    )
    local_rank: int = flag("--local-rank", default=0, help="defaults to env LOCAL_RANK")
    use_distributed_optimizer: bool = flag(
        "--use-distributed-optimizer", default=False, help="ZeRO-1 sharding over DP(xCP)"
    )
    context_parallel_size: int = flag(
        "--context-parallel-size", default=1, help="CP degree; seq must divide by 2*CP"
    )
    expert_model_parallel_size: int = flag(
        "--expert-model-parallel-size",
        default=1,
        help="EP degree; must divide experts; not with fp16",
    )

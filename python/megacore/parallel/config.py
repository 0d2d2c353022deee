"""Degrees of parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; only 1 is supported so far, other values are refused by name."""

    GROUP: ClassVar[str] = "parallel"

    tensor_model_parallel_size: int = flag(
        "--tensor-model-parallel-size",
        default=1,
        help="parts that each weight matrix is split into",
        bounds="[1, inf)",
    )
    pipeline_model_parallel_size: int = flag(
        "--pipeline-model-parallel-size",
        default=1,
        help="stages that the layers are split into",
        bounds="[1, inf)",
    )
    context_parallel_size: int = flag(
        "--context-parallel-size",
        default=1,
        help="parts that each sequence is split into",
        bounds="[1, inf)",
    )
    expert_model_parallel_size: int = flag(
        "--expert-model-parallel-size",
        default=1,
        help="parts that the experts are split into",
        bounds="[1, inf)",
    )

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model together."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model among `world_size` processes, at least one."""
        return max(1, world_size // self.model_parallel_size)

    def faults(self) -> Iterator[Fault]:
        """Degrees that are no numbers of parts."""
        yield from value_faults(self)

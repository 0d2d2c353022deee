"""How much memory training state takes, measured on the tensors that hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from megacore.optim.buffers import Bucket


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of the tensors of one process; padding is in them.

    Attributes:
        num_params: Elements of the trained parameters on this process.
        parameters: Parameters in the dtype of the model.
        gradients: Sums of gradients.
        main_parameters: Parameters of higher precision.
        main_gradients: Gradients of higher precision.
        state: What the update rule keeps.
    """

    num_params: int
    parameters: int
    gradients: int
    main_parameters: int
    main_gradients: int
    state: int

    @property
    def total(self) -> int:
        """All bytes."""
        return (
            self.parameters
            + self.gradients
            + self.main_parameters
            + self.main_gradients
            + self.state
        )

    @property
    def bytes_per_parameter(self) -> float:
        """All bytes over the number of parameters."""
        return self.total / max(1, self.num_params)

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_parameter:.2f} bytes per parameter for {self.num_params} parameters "
            f"(parameters {self.parameters}, gradients {self.gradients}, main parameters "
            f"{self.main_parameters}, main gradients {self.main_gradients}, optimizer state "
            f"{self.state} bytes)"
        )


def _gradients(bucket: Bucket) -> tuple[Tensor, ...]:
    return (bucket.grad, bucket.own_grad) if bucket.has_open_sums else (bucket.own_grad,)


def memory_report(buckets: Iterable[Bucket]) -> MemoryReport:
    """What the buckets hold now; memory that two tensors share is counted once, as the first."""
    # Not by address: what is planned on the meta device has none.
    seen: set[int] = set()

    def size(tensors: Iterable[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        return total

    listed = list(buckets)
    return MemoryReport(
        num_params=sum(p.param.numel() for bucket in listed for p in bucket.params),
        parameters=size(bucket.model for bucket in listed if bucket.is_here),
        gradients=size(g for bucket in listed for g in _gradients(bucket)),
        main_parameters=size(bucket.main for bucket in listed),
        main_gradients=size(bucket.main_grad for bucket in listed),
        state=size(tensor for bucket in listed for tensor in bucket.state.values()),
    )

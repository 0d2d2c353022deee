"""Global batch size and number of micro-batches, constant or ramped up."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from megacore.errors import UsageError


class BatchSettings(Protocol):
    """The batch settings of a run that are read here."""

    @property
    def micro_batch_size(self) -> int | None:
        """Samples per forward pass of one replica."""

    @property
    def global_batch_size(self) -> int | None:
        """Samples per optimizer step; None for one micro-batch per replica."""

    @property
    def rampup_batch_size(self) -> tuple[int | str, ...] | None:
        """Start, increment and length in samples of a ramp, as written."""

    @property
    def decrease_batch_size_if_needed(self) -> bool:
        """Round a batch size down instead of refusing it."""


class BatchSize(NamedTuple):
    """Batch of one optimizer step.

    Attributes:
        global_batch_size: Samples that the step consumes over all replicas.
        num_microbatches: Forward passes per replica.
    """

    global_batch_size: int
    num_microbatches: int


class _Ramp(NamedTuple):
    start: int
    increment: int
    num_samples: int


class MicrobatchCalculator:
    """Batch size as a function of the samples consumed so far.

    Args:
        batch: Batch settings.
        data_parallel_size: Number of replicas.

    Raises:
        UsageError: A size is not positive, the ramp does not reach the global batch size in whole
            increments, or a size on the way cannot be cut into micro-batches; the message names
            the flag and every such size.
    """

    def __init__(self, batch: BatchSettings, data_parallel_size: int = 1) -> None:
        if batch.micro_batch_size is None or batch.micro_batch_size < 1:
            raise UsageError(f"--micro-batch-size must be positive, got {batch.micro_batch_size}")
        if data_parallel_size < 1:
            raise UsageError(f"data-parallel size must be positive, got {data_parallel_size}")
        self._per_pass = batch.micro_batch_size * data_parallel_size
        self._target = (
            self._per_pass if batch.global_batch_size is None else batch.global_batch_size
        )
        self._ramp = _parse_ramp(batch.rampup_batch_size, self._target)
        self._check_sizes(batch, data_parallel_size)

    def _check_sizes(self, batch: BatchSettings, data_parallel_size: int) -> None:
        sizes = (
            range(self._ramp.start, self._target + 1, self._ramp.increment)
            if self._ramp
            else (self._target,)
        )
        per_pass = f"--micro-batch-size {batch.micro_batch_size} * replicas {data_parallel_size}"
        if sizes[0] < self._per_pass:
            raise UsageError(
                f"global batch size {sizes[0]} is less than {per_pass} = {self._per_pass}"
            )
        uneven = [size for size in sizes if size % self._per_pass]
        if uneven and not batch.decrease_batch_size_if_needed:
            shown = ", ".join(str(size) for size in uneven[:8]) + (", ..." if uneven[8:] else "")
            raise UsageError(
                f"global batch size {shown} is not a multiple of {per_pass} = {self._per_pass}; "
                "change --global-batch-size or --rampup-batch-size, or pass "
                "--decrease-batch-size-if-needed to round it down"
            )

    @property
    def max_global_batch_size(self) -> int:
        """Batch size after any ramp, rounded down if that was asked for."""
        return self._target // self._per_pass * self._per_pass

    def nominal(self, consumed_samples: int) -> int:
        """Batch size that the settings ask for at this point, before it is rounded down."""
        size = self._target
        if self._ramp and consumed_samples < self._ramp.num_samples:
            # floor(consumed / (length / increments)) in whole numbers, so that no rounding error
            # moves a step to the sample before or after it.
            increments = (self._target - self._ramp.start) // self._ramp.increment
            done = consumed_samples * increments // self._ramp.num_samples
            size = self._ramp.start + done * self._ramp.increment
        return size

    def at(self, consumed_samples: int) -> BatchSize:
        """Batch of the step that starts after `consumed_samples` samples."""
        num_microbatches = self.nominal(consumed_samples) // self._per_pass
        return BatchSize(num_microbatches * self._per_pass, num_microbatches)

    def iterations(self, train_samples: int) -> int:
        """Full optimizer steps that `train_samples` samples allow, the ramp included."""
        consumed = iterations = 0
        if self._ramp:
            while consumed < self._ramp.num_samples:
                size = self.at(consumed).global_batch_size
                if consumed + size > train_samples:
                    return iterations
                consumed += size
                iterations += 1
        return iterations + (train_samples - consumed) // self.max_global_batch_size


def _parse_ramp(words: tuple[int | str, ...] | None, target: int) -> _Ramp | None:
    if words is None:
        return None
    given = "--rampup-batch-size " + " ".join(str(word) for word in words)
    try:
        start, increment, num_samples = (int(word) for word in words)
    except ValueError:
        raise UsageError(f"{given}: expected three whole numbers START INCREMENT SAMPLES") from None
    if start < 1 or increment < 1 or num_samples < 0:
        raise UsageError(f"{given}: START and INCREMENT must be positive, SAMPLES not negative")
    if start > target or (target - start) % increment:
        raise UsageError(
            f"{given}: --global-batch-size {target} is not START plus a whole number of INCREMENTs"
        )
    return _Ramp(start, increment, num_samples)

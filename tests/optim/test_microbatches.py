"""Batch ramp-up against a slow transcription of its rules."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacore.errors import UsageError
from megacore.optim import MicrobatchCalculator
from megacore.training.config import BatchConfig


def test_constant_batch() -> None:
    batch = BatchConfig(micro_batch_size=3, global_batch_size=24)
    calculator = MicrobatchCalculator(batch, data_parallel_size=2)
    assert calculator.at(0) == calculator.at(10**9) == (24, 4)
    assert calculator.max_global_batch_size == 24
    assert calculator.iterations(100) == 4
    assert MicrobatchCalculator(BatchConfig(micro_batch_size=3), 2).at(0) == (6, 1)


@given(
    start=st.integers(1, 8),
    increment=st.integers(1, 8),
    increments=st.integers(0, 7),
    num_samples=st.integers(1, 400),
    consumed=st.integers(0, 500),
)
def test_ramp_follows_the_rule(
    start: int, increment: int, increments: int, num_samples: int, consumed: int
) -> None:
    target = start + increment * increments
    ramp = tuple(str(word) for word in (start, increment, num_samples))
    batch = BatchConfig(micro_batch_size=1, global_batch_size=target, rampup_batch_size=ramp)
    expected = target
    if increments and consumed < num_samples:
        samples_per_step = Fraction(num_samples, increments)
        expected = start + increment * int(consumed / samples_per_step)
    assert MicrobatchCalculator(batch).at(consumed) == (expected, expected)


@given(
    micro=st.integers(1, 3),
    replicas=st.integers(1, 3),
    increments=st.integers(0, 6),
    num_samples=st.integers(0, 300),
    train_samples=st.integers(0, 900),
)
def test_iterations_consume_the_samples(
    micro: int, replicas: int, increments: int, num_samples: int, train_samples: int
) -> None:
    """Stepping one iteration at a time gives the same count and never exceeds the samples."""
    unit = micro * replicas
    batch = BatchConfig(
        micro_batch_size=micro,
        global_batch_size=unit * (1 + increments),
        rampup_batch_size=(str(unit), str(unit), str(num_samples)),
    )
    calculator = MicrobatchCalculator(batch, replicas)
    consumed = steps = 0
    while consumed + calculator.at(consumed).global_batch_size <= train_samples:
        consumed += calculator.at(consumed).global_batch_size
        steps += 1
    assert calculator.iterations(train_samples) == steps


def test_the_published_ramp_of_a_large_model() -> None:
    batch = BatchConfig(
        micro_batch_size=1, global_batch_size=1536, rampup_batch_size=("16", "16", "5859375")
    )
    calculator = MicrobatchCalculator(batch, data_parallel_size=8)
    assert calculator.at(0) == (16, 2)
    assert calculator.at(61677).global_batch_size == 16
    assert calculator.at(61678).global_batch_size == 32
    assert calculator.at(5859374).global_batch_size == 1520
    assert calculator.at(5859375) == (1536, 192)


def test_sizes_that_cannot_be_cut_are_all_listed() -> None:
    batch = BatchConfig(
        micro_batch_size=2, global_batch_size=24, rampup_batch_size=("4", "5", "100")
    )
    with pytest.raises(UsageError, match=r"9, 14, 19 is not a multiple .* = 4"):
        MicrobatchCalculator(batch, data_parallel_size=2)
    rounded = BatchConfig(
        micro_batch_size=2,
        global_batch_size=24,
        rampup_batch_size=("4", "5", "100"),
        decrease_batch_size_if_needed=True,
    )
    calculator = MicrobatchCalculator(rounded, data_parallel_size=2)
    sizes = [calculator.at(consumed) for consumed in (0, 25, 50, 75, 100)]
    assert sizes == [(4, 1), (8, 2), (12, 3), (16, 4), (24, 6)]


def test_constant_size_is_rounded_down_on_request_only() -> None:
    uneven = BatchConfig(micro_batch_size=4, global_batch_size=10)
    with pytest.raises(UsageError, match="--decrease-batch-size-if-needed"):
        MicrobatchCalculator(uneven)
    lenient = BatchConfig(
        micro_batch_size=4, global_batch_size=10, decrease_batch_size_if_needed=True
    )
    assert MicrobatchCalculator(lenient).at(0) == (8, 2)
    assert MicrobatchCalculator(lenient).iterations(17) == 2
    small = BatchConfig(micro_batch_size=4, global_batch_size=3, decrease_batch_size_if_needed=True)
    with pytest.raises(UsageError, match="3 is less than"):
        MicrobatchCalculator(small)


@pytest.mark.parametrize(
    ("ramp", "named"),
    [
        (("4", "4"), "three whole numbers"),
        (("4", "4", "many"), "three whole numbers"),
        (("0", "4", "10"), "must be positive"),
        (("4", "0", "10"), "must be positive"),
        (("4", "4", "-1"), "must be positive"),
        (("4", "7", "10"), "whole number of INCREMENTs"),
        (("32", "4", "10"), "whole number of INCREMENTs"),
    ],
)
def test_a_wrong_ramp_is_named(ramp: tuple[str, ...], named: str) -> None:
    batch = BatchConfig(micro_batch_size=1, global_batch_size=16, rampup_batch_size=ramp)
    with pytest.raises(UsageError, match=named):
        MicrobatchCalculator(batch)


@pytest.mark.parametrize("micro", [None, 0, -1])
def test_a_micro_batch_must_have_samples(micro: int | None) -> None:
    with pytest.raises(UsageError, match="--micro-batch-size"):
        MicrobatchCalculator(BatchConfig(micro_batch_size=micro))
    with pytest.raises(UsageError, match="data-parallel size"):
        MicrobatchCalculator(BatchConfig(micro_batch_size=1), 0)

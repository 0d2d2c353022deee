"""The log lines: exact text, and reading them back."""

from __future__ import annotations

import math
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacore.training.log_line import (
    IterationRecord,
    format_iteration,
    format_moment,
    format_validation,
    parse_iteration,
    parse_validation,
    perplexity,
)

NOON = datetime(2026, 3, 4, 12, 0, 5)


def record(**changes: object) -> IterationRecord:
    values: dict[str, object] = {
        "time": NOON,
        "iteration": 100,
        "train_iters": 500000,
        "consumed_samples": 25600,
        "elapsed_ms": 1234.56,
        "learning_rate": 1.5e-4,
        "global_batch_size": 256,
        "loss_scale": 1.0,
        "skipped_iterations": 0,
        "nan_iterations": 0,
        "losses": {"lm loss": 7.654321},
    }
    return IterationRecord(**(values | changes))  # type: ignore[arg-type]


def test_the_plain_line_to_the_character() -> None:
    assert format_iteration(record()) == (
        " [2026-03-04 12:00:05] iteration      100/  500000 | consumed samples:        25600 |"
        " elapsed time per iteration (ms): 1234.6 | learning rate: 1.500000E-04 |"
        " global batch size:   256 | lm loss: 7.654321E+00 | loss scale: 1.0 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def test_every_optional_part_is_in_its_place() -> None:
    line = format_iteration(
        record(
            skipped_samples=12,
            throughput_tflops=33.25,
            decoupled_learning_rate=2e-5,
            losses={"lm loss": 2.0, "load_balancing_loss": 1.0625},
            loss_scale=65536.0,
            grad_norm=0.98765,
            num_zeros=42,
            params_norm=123.4567,
            skipped_iterations=3,
            nan_iterations=1,
        )
    )
    assert line == (
        " [2026-03-04 12:00:05] iteration      100/  500000 | consumed samples:        25600 |"
        " skipped samples:           12 | elapsed time per iteration (ms): 1234.6 |"
        " throughput per GPU (TFLOP/s/GPU): 33.2 | learning rate: 1.500000E-04 |"
        " decoupled learning rate: 2.000000E-05 | global batch size:   256 |"
        " lm loss: 2.000000E+00 | load_balancing_loss: 1.062500E+00 | loss scale: 65536.0 |"
        " grad norm: 0.988 | num zeros: 42.0 | params norm: 123.457 |"
        " number of skipped iterations:   3 | number of nan iterations:   1 |"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_a_loss_never_vanishes_from_the_line(value: float) -> None:
    parsed = parse_iteration(format_iteration(record(losses={"lm loss": value})))
    assert parsed is not None
    assert (
        math.isnan(parsed.losses["lm loss"])
        if math.isnan(value)
        else (parsed.losses["lm loss"] == value)
    )


finite = st.floats(min_value=-1e30, max_value=1e30, allow_nan=False)
positive = st.floats(min_value=1e-30, max_value=1e9)
counts = st.integers(min_value=0, max_value=10**11)


@given(
    iteration=st.integers(0, 10**9),
    consumed=counts,
    skipped=counts,
    elapsed=st.floats(0, 1e7),
    rate=st.floats(0, 10.0),
    losses=st.dictionaries(
        st.sampled_from(["lm loss", "z_loss", "sop loss", "top1_acc"]), finite, max_size=4
    ),
    norm=st.none() | st.floats(0, 1e6),
    zeros=st.none() | st.integers(0, 10**9),
    throughput=st.none() | st.floats(0, 1e4),
)
def test_reading_gives_back_what_was_written_to_the_printed_digits(
    iteration, consumed, skipped, elapsed, rate, losses, norm, zeros, throughput
) -> None:
    written = record(
        iteration=iteration,
        consumed_samples=consumed,
        skipped_samples=skipped,
        elapsed_ms=elapsed,
        learning_rate=rate,
        losses=losses,
        grad_norm=norm,
        num_zeros=zeros,
        throughput_tflops=throughput,
    )
    line = format_iteration(written)
    read = parse_iteration(line)
    assert read is not None
    assert format_iteration(read) == line
    assert (read.iteration, read.consumed_samples) == (iteration, consumed)
    assert read.losses.keys() == losses.keys()


def test_lines_of_newer_writers_are_understood() -> None:
    line = (
        " [2026-03-04 12:00:05.123456] iteration        5/      10 | consumed samples: 40 |"
        " elapsed time per iteration (ms): 10.0 | throughput per GPU (TFLOP/s/GPU): 1.0 |"
        " energy per GPU (J/iter/GPU): 3.5 | power per GPU (W/GPU): 300.0 |"
        " learning rate: 1.0E-04 | global batch size: 8 | lm loss: 3.0E+00 | loss scale: 1.0 |"
        " grad norm: 1.0 | number of skipped iterations: 0 | number of nan iterations: 0 |"
    )
    parsed = parse_iteration(line)
    assert parsed is not None
    assert parsed.losses == {"lm loss": 3.0}
    assert parsed.throughput_tflops == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   tokens/s: 1000.0 | model TFLOP/s: 0.1 | MFU: 10.0% of 1 TFLOP/s |",
        " validation loss at iteration 5 | lm loss value: 1.0E+00 | lm loss PPL: 2.7E+00 | ",
        " [2026-03-04 12:00:05] iteration        5/      10 | consumed sam",
        "[after dataloaders are built] datetime: 2026-03-04 12:00:05 ",
    ],
)
def test_other_lines_are_not_iterations(line: str) -> None:
    assert parse_iteration(line) is None


def test_validation_lines_to_the_character() -> None:
    text = format_validation("iteration 50 on test set", {"lm loss": 2.5})
    line = (
        " validation loss at iteration 50 on test set | lm loss value: 2.500000E+00 |"
        " lm loss PPL: 1.218249E+01 | "
    )
    assert text == "\n".join(["-" * (len(line) + 1), line, "-" * (len(line) + 1)])
    read = parse_validation(line)
    assert read is not None
    assert (read.iteration, read.set_name, dict(read.losses)) == (50, "test", {"lm loss": 2.5})
    between = parse_validation(format_validation("iteration 7", {"lm loss": 1.0}).splitlines()[1])
    assert between is not None
    assert (between.iteration, between.set_name) == (7, "")


def test_perplexity_is_capped_and_keeps_nan() -> None:
    assert perplexity(1.0) == pytest.approx(math.e)
    assert perplexity(1e9) == math.exp(20.0)
    assert math.isnan(perplexity(math.nan))


def test_moments() -> None:
    assert format_moment("after dataloaders are built", NOON) == (
        "[after dataloaders are built] datetime: 2026-03-04 12:00:05 "
    )

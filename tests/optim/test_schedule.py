"""Schedules against closed forms in exact arithmetic and against torch's schedulers."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacore.errors import CheckpointError, UsageError
from megacore.optim import ParamScheduler
from megacore.optim.config import OptimizerConfig, ScheduleConfig
from megacore.optim.schedule import build_curve, learning_rate, weight_decay

BATCH = 12
ITERS = 500


def scheduler(
    schedule: ScheduleConfig, optimizer: OptimizerConfig | None = None, **length: int
) -> ParamScheduler:
    return ParamScheduler.build(
        schedule,
        optimizer=optimizer or OptimizerConfig(),
        global_batch_size=BATCH,
        **(length or {"train_iters": ITERS}),
    )


def walk(made: ParamScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(made.rates().lr)
        made.advance(BATCH)
    return rates


@given(
    n=st.integers(0, 8000),
    warmup=st.integers(0, 400),
    anneal=st.integers(1, 99),
    low=st.integers(0, 5),
    start=st.integers(0, 10),
)
def test_rational_curves_are_exact(n: int, warmup: int, anneal: int, low: int, start: int) -> None:
    """Linear and WSD-linear are rational functions: compared in exact arithmetic."""
    high, low_rate, init = 2.0**-7, low * 2.0**-12, start * 2.0**-11
    for style in ("linear", "WSD"):
        settings = ScheduleConfig(
            lr=high,
            min_lr=low_rate,
            lr_warmup_init=init,
            lr_warmup_iters=warmup,
            lr_decay_style=style,
            lr_wsd_decay_style="linear",
            lr_wsd_decay_iters=anneal,
        )
        curve = build_curve(
            settings, optimizer=OptimizerConfig(), global_batch_size=BATCH, train_iters=ITERS
        )
        w, d, a = Fraction(warmup * BATCH), Fraction(ITERS * BATCH), Fraction(anneal * BATCH)
        top, bottom, first = Fraction(high), Fraction(low_rate), Fraction(init)
        if w > 0 and n <= w:
            exact = first + (top - first) * n / w
        elif n > d:
            exact = bottom
        elif style == "linear":
            exact = bottom + (top - bottom) * (1 - (n - w) / (d - w))
        elif n <= d - a:
            exact = top
        else:
            exact = bottom + (top - bottom) * (1 - (n - (d - a)) / a)
        # A handful of roundings of numbers no larger than the peak rate.
        assert abs(Fraction(learning_rate(curve, n)) - exact) <= 8 * Fraction(2) ** -53 * top


@pytest.mark.parametrize("warmup", [0, 37])
@pytest.mark.parametrize("low", [0.0, 1e-5])
def test_transcendental_curves(warmup: int, low: float) -> None:
    """Cosine, inverse square root and the other WSD shapes in their half-angle closed forms."""
    high, d, w, a = 3e-4, ITERS * BATCH, warmup * BATCH, 90 * BATCH
    base = ScheduleConfig(lr=high, min_lr=low, lr_warmup_iters=warmup, lr_wsd_decay_iters=90)
    made = {
        style: build_curve(
            dataclasses.replace(base, lr_decay_style=style.split("-")[0], lr_wsd_decay_style=shape),
            optimizer=OptimizerConfig(),
            global_batch_size=BATCH,
            train_iters=ITERS,
        )
        for style, shape in (
            ("cosine", "linear"),
            ("WSD-cosine", "cosine"),
            ("WSD-exponential", "exponential"),
        )
    }
    roots = build_curve(
        dataclasses.replace(base, lr_decay_style="inverse-square-root"),
        optimizer=OptimizerConfig(),
        global_batch_size=BATCH,
        train_iters=ITERS,
    )
    for n in range(w + 1, d + 1, 7):
        half = math.pi * (n - w) / (d - w) / 2
        assert learning_rate(made["cosine"], n) == pytest.approx(
            low + (high - low) * math.cos(half) ** 2, rel=1e-12, abs=1e-18
        )
        t = max(0.0, (n - (d - a)) / a)
        assert learning_rate(made["WSD-cosine"], n) == pytest.approx(
            low + (high - low) * math.cos(math.pi * t / 2) ** 2, rel=1e-12, abs=1e-18
        )
        assert learning_rate(made["WSD-exponential"], n) == pytest.approx(
            low + (high - low) * (2.0 ** (1 - t) - 1), rel=1e-12, abs=1e-18
        )
        assert learning_rate(roots, n) == pytest.approx(
            max(low, high * (max(w, 1) / n) ** 0.5), rel=1e-12
        )
    for curve in (*made.values(), roots):
        assert learning_rate(curve, d + 1) == low
        if warmup:
            assert learning_rate(curve, w) == high
            assert learning_rate(curve, w // 2) == pytest.approx(high * (w // 2) / w)


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_equals_torch_schedulers(style: str) -> None:
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=1e-3)
    reference: torch.optim.lr_scheduler.LRScheduler
    if style == "linear":
        reference = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.1, total_iters=ITERS
        )
    else:
        reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERS, eta_min=1e-4)
    ours = walk(scheduler(ScheduleConfig(lr=1e-3, min_lr=1e-4, lr_decay_style=style)), ITERS)
    for rate in ours:
        # torch multiplies its way from step to step, so its rounding errors add up.
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


def test_constant_keeps_the_peak_even_after_the_horizon() -> None:
    made = scheduler(ScheduleConfig(lr=0.5, min_lr=0.1, lr_decay_style="constant"))
    made.advance(10 * ITERS * BATCH)
    assert made.rates().lr == 0.5


def test_warmup_ends_at_the_peak_and_starts_at_init() -> None:
    made = scheduler(
        ScheduleConfig(lr=0.5, lr_warmup_iters=4, lr_warmup_init=0.1, lr_decay_style="constant")
    )
    assert walk(made, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_lengths_in_samples_iterations_and_fractions() -> None:
    by_iters = build_curve(
        ScheduleConfig(lr=1.0, lr_warmup_iters=5, lr_decay_iters=50),
        optimizer=OptimizerConfig(),
        global_batch_size=BATCH,
        train_iters=ITERS,
    )
    assert (by_iters.lr_warmup_steps, by_iters.lr_decay_steps) == (5 * BATCH, 50 * BATCH)
    assert by_iters.wd_incr_steps == ITERS * BATCH
    by_samples = build_curve(
        ScheduleConfig(lr=1.0, lr_warmup_samples=77, lr_wsd_decay_samples=9, lr_decay_style="WSD"),
        optimizer=OptimizerConfig(),
        global_batch_size=BATCH,
        train_samples=1001,
    )
    assert (by_samples.lr_warmup_steps, by_samples.lr_decay_steps) == (77, 1001)
    assert (by_samples.wd_incr_steps, by_samples.wsd_decay_steps) == (1001, 9)
    fraction = build_curve(
        ScheduleConfig(lr=1.0, lr_warmup_fraction=0.01, lr_decay_samples=500),
        optimizer=OptimizerConfig(),
        global_batch_size=BATCH,
        train_samples=1001,
    )
    assert fraction.lr_warmup_steps == 0.01 * 500


def test_decoupled_rate_has_its_own_peak_and_floor() -> None:
    made = scheduler(
        ScheduleConfig(lr=0.1, min_lr=0.01, lr_warmup_iters=10),
        OptimizerConfig(decoupled_lr=1.0, decoupled_min_lr=0.5),
    )
    assert made.rates().decoupled_lr == 0.0
    made.advance(10 * BATCH)
    assert made.rates()[::2] == (0.1, 1.0)
    made.advance(ITERS * BATCH)
    assert made.rates()[::2] == (0.01, 0.5)
    shared_floor = scheduler(ScheduleConfig(lr=0.1, min_lr=0.01), OptimizerConfig(decoupled_lr=1.0))
    shared_floor.advance(2 * ITERS * BATCH)
    assert shared_floor.rates().decoupled_lr == 0.01
    assert scheduler(ScheduleConfig(lr=0.1)).rates().decoupled_lr is None


def test_weight_decay_curves() -> None:
    total = ITERS * BATCH
    for style in ("linear", "cosine"):
        curve = build_curve(
            ScheduleConfig(lr=1.0),
            optimizer=OptimizerConfig(
                start_weight_decay=0.02, end_weight_decay=0.3, weight_decay_incr_style=style
            ),
            global_batch_size=BATCH,
            train_iters=ITERS,
        )
        for n in range(0, total + 1, 97):
            share = n / total if style == "linear" else math.sin(math.pi * n / total / 2) ** 2
            assert weight_decay(curve, n) == pytest.approx(0.02 + share * 0.28, rel=1e-12)
        assert weight_decay(curve, total + 1) == 0.3
    constant = scheduler(ScheduleConfig(lr=1.0), OptimizerConfig(weight_decay=0.07))
    assert constant.rates().weight_decay == 0.07


@pytest.mark.parametrize(
    ("schedule", "optimizer", "named"),
    [
        (ScheduleConfig(), OptimizerConfig(), "--lr must"),
        (ScheduleConfig(lr=0.1, min_lr=0.2), OptimizerConfig(), "--min-lr 0.2"),
        (ScheduleConfig(lr=0.1, lr_warmup_init=0.2), OptimizerConfig(), "--lr-warmup-init 0.2"),
        (ScheduleConfig(lr=0.1, lr_warmup_iters=ITERS), OptimizerConfig(), "warmup of 6000"),
        (ScheduleConfig(lr=0.1, lr_decay_style="WSD"), OptimizerConfig(), "--lr-wsd-decay-iters"),
        (
            ScheduleConfig(lr=0.1, lr_decay_style="WSD", lr_wsd_decay_iters=0),
            OptimizerConfig(),
            "anneal takes 0",
        ),
        (
            ScheduleConfig(lr=0.1),
            OptimizerConfig(weight_decay_incr_style="linear", end_weight_decay=1.0),
            "--start-weight-decay",
        ),
        (
            ScheduleConfig(lr=0.1),
            OptimizerConfig(
                weight_decay_incr_style="linear", start_weight_decay=1.0, end_weight_decay=0.5
            ),
            "weight decay must go up",
        ),
        (
            ScheduleConfig(lr=0.1),
            OptimizerConfig(decoupled_lr=0.1, decoupled_min_lr=0.2),
            "--decoupled-min-lr 0.2",
        ),
    ],
)
def test_impossible_schedules_name_the_flag(
    schedule: ScheduleConfig, optimizer: OptimizerConfig, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        scheduler(schedule, optimizer)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        scheduler(ScheduleConfig(lr=0.1, min_lr=0.2, lr_warmup_init=0.3, lr_warmup_iters=ITERS))
    assert str(caught.value).count("\n  - ") == 3


def test_exactly_one_length_must_be_given() -> None:
    for length in ({}, {"train_iters": 3, "train_samples": 3}):
        with pytest.raises(UsageError, match="--train-iters and --train-samples"):
            ParamScheduler.build(
                ScheduleConfig(lr=1.0), optimizer=OptimizerConfig(), global_batch_size=1, **length
            )


def test_resume_takes_the_position_through_json() -> None:
    first = scheduler(ScheduleConfig(lr=0.1, lr_warmup_fraction=0.013, lr_decay_style="cosine"))
    first.advance(1234)
    second = scheduler(ScheduleConfig(lr=0.1, lr_warmup_fraction=0.013, lr_decay_style="cosine"))
    assert second.load_state(json.loads(json.dumps(first.state_values()))) == []
    assert second.rates() == first.rates()
    assert second.samples == 1234


def test_a_different_schedule_is_refused_unless_a_side_is_chosen() -> None:
    stored = scheduler(ScheduleConfig(lr=0.1, min_lr=0.01))
    stored.advance(60)
    values = stored.state_values()
    changed = ScheduleConfig(lr=0.2, min_lr=0.01, lr_decay_style="cosine")
    mine = scheduler(changed, train_iters=2 * ITERS)
    with pytest.raises(UsageError) as caught:
        mine.load_state(values)
    for part in ("max_lr", "--lr-decay-style", "0.1", "0.2", "6000", "12000", "wd_incr_steps"):
        assert part in str(caught.value)
    assert "min_lr" not in str(caught.value)
    assert mine.samples == 0

    differences = mine.load_state(values, override=True)
    assert {d.name: (d.checkpoint, d.command_line, d.used) for d in differences} == {
        "max_lr": (0.1, 0.2, 0.2),
        "lr_decay_style": ("linear", "cosine", "cosine"),
        "lr_decay_steps": (6000, 12000, 12000),
        "wd_incr_steps": (6000, 12000, 12000),
    }
    assert mine.samples == 60
    assert mine.curve.max_lr == 0.2

    theirs = scheduler(changed, train_iters=2 * ITERS)
    assert all(d.used == d.checkpoint for d in theirs.load_state(values, use_checkpoint=True))
    assert theirs.rates() == stored.rates()
    with pytest.raises(UsageError, match="exclude each other"):
        mine.load_state(values, override=True, use_checkpoint=True)


def test_a_state_without_position_is_refused() -> None:
    made = scheduler(ScheduleConfig(lr=0.1))
    with pytest.raises(CheckpointError, match="num_steps"):
        made.load_state({"max_lr": 0.1})

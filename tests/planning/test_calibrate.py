"""Calibration: fits recover what made their data; a measured profile can be written and read."""

from __future__ import annotations

import random

import pytest
import torch

from megacore.planning.calibrate_fit import fit_scales
from megacore.planning.calibrate_links import fit_link
from megacore.planning.calibrate_ops import Clock, fit_matmul, measure_memory, measure_overhead


def test_matmul_fit_recovers_rate_and_half() -> None:
    points = [(k, 5e12 / (1 + 300 / k)) for k in (64, 512, 2048, 8192)]
    fit = fit_matmul(points)
    assert fit.rate == pytest.approx(5e12)
    assert fit.half_k == pytest.approx(300)
    assert fit.best == max(speed for _, speed in points)


def test_matmul_fit_of_nonsense_stays_positive() -> None:
    fit = fit_matmul([(64, 9e9), (1024, 1e9), (4096, 1e8)])
    assert fit.rate > 0
    assert fit.half_k >= 0


def test_link_fit_recovers_latency_and_rate() -> None:
    points = [
        (sent, steps, steps * 20e-6 + sent / 3e9)
        for sent, steps in ((4e3, 2.0), (1e6, 6.0), (8e6, 3.0), (64e6, 1.0))
    ]
    fit = fit_link(points)
    assert fit.latency_s == pytest.approx(20e-6)
    assert fit.bytes_per_s == pytest.approx(3e9)


def test_link_fit_never_gives_times_below_nothing() -> None:
    fit = fit_link([(1e6, 1.0, 1e-3), (2e6, 1.0, 0.9e-3), (4e6, 2.0, 0.8e-3)])
    assert fit.latency_s > 0
    assert fit.bytes_per_s > 0


def test_scales_are_recovered() -> None:
    draw = random.Random(3)
    names = ("matmul", "attention", "memory", "launch")
    truth = dict(zip(names, (1.3, 0.8, 1.1, 2.0), strict=True))
    parts = [{name: 10 ** draw.uniform(-2, 0) for name in names} for _ in range(12)]
    measured = [sum(truth[name] * row[name] for name in names) for row in parts]
    found = fit_scales(parts, measured)
    for name in names:
        assert found[name] == pytest.approx(truth[name], rel=0.05)


def test_scales_without_evidence_stay_at_one() -> None:
    assert fit_scales([{"a": 1.0, "b": 0.0}], [2.0])["b"] == 1.0
    # Nothing may take less than no time.
    found = fit_scales([{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}], [1.0, 0.5])
    assert min(found.values()) >= 0.0


def test_the_clock_measures_something() -> None:
    clock = Clock(torch.device("cpu"), budget_s=0.0)
    assert 1e6 < measure_memory(clock) < 1e13
    assert 1e-9 < measure_overhead(clock) < 1e-2

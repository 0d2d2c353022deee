"""Calibration: fits recover what made their data; a measured profile can be written and read."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megacore.cli import main
from megacore.planning.calibrate import fitted_profile
from megacore.planning.calibrate_fit import fit_scales
from megacore.planning.calibrate_links import fit_link
from megacore.planning.calibrate_ops import Clock, fit_matmul, measure_memory, measure_overhead
from megacore.planning.calibrate_steps import CPU_MODELS, SmallModel, small_run
from megacore.planning.estimates import estimate
from megacore.planning.hardware import load_profile
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel


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


@pytest.mark.slow
def test_a_profile_of_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    words = ["--processes", "2", "--dtypes", "fp32", "--seconds", "0.05", "--output", str(file)]
    assert main(["plan", "calibrate", *words]) == 0
    profile = load_profile(str(file))
    assert profile.kind == "cpu"
    assert profile.gpus_per_node == 2
    assert "measured" in profile.sources["matmul_efficiency"]
    assert "measured" in profile.links[0].source
    # It can be planned with, and says that more processes take less time.
    small = SmallModel(layers=2, hidden=128, length=128, micro_batch=4, num_microbatches=4)
    model = PlanModel.of(small_run(small, "fp32"), vocab_size=4096)
    alone = estimate(Layout(micro_batch=4), model, profile, 16).step_s
    assert estimate(Layout(micro_batch=4, dp=2), model, profile, 16).step_s < alone


def test_fitted_profiles_reproduce_the_steps_they_were_fitted_to() -> None:
    truth = load_profile("cpu")
    small = list(CPU_MODELS)
    seconds = [
        estimate(
            Layout(micro_batch=one.micro_batch),
            PlanModel.of(small_run(one, "fp32"), vocab_size=4096),
            truth,
            one.micro_batch * one.num_microbatches,
        ).step_s
        for one in small
    ]
    rough = replace(
        truth,
        matmul_efficiency=0.7 * truth.matmul_efficiency,
        memory_rate=2.0 * truth.memory_rate,
        op_overhead_s=0.5 * truth.op_overhead_s,
        step_overhead_s=3e-3,
    )
    fitted = fitted_profile(rough, small, seconds, "fp32")
    for one, measured in zip(small, seconds, strict=True):
        found = estimate(
            Layout(micro_batch=one.micro_batch),
            PlanModel.of(small_run(one, "fp32"), vocab_size=4096),
            fitted,
            one.micro_batch * one.num_microbatches,
        )
        assert found.step_s == pytest.approx(measured, rel=0.03)
    assert "small models" in fitted.sources["memory_rate"]


def test_output_and_link_are_checked_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "calibrate", "--output", "profile.txt"]) == 2
    assert main(["plan", "calibrate", "--link", "string"]) == 2
    assert "ethernet-10g" in capsys.readouterr().err

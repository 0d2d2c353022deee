"""Goodput: closed form against an event-by-event replay, optima, spare nodes, published run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from megacore.planning.goodput import (
    DAY,
    HOUR,
    Reliability,
    best_interval,
    daly_interval,
    goodput,
    spare_nodes_for,
    waiting_share,
    young_interval,
)
from megacore.planning.goodput_replay import LLAMA3_405B, replay

LLAMA = Reliability(
    gpus=LLAMA3_405B.gpus,
    gpu_mtbf_s=LLAMA3_405B.gpu_mtbf_s,
    hardware_share=LLAMA3_405B.hardware_share,
    spare_nodes=30,
)
CASES = {
    "few failures": replace(LLAMA, gpus=1024, spare_nodes=8),
    "background writing": replace(LLAMA, checkpoint_s=5.0, write_s=240.0),
    "long restarts": replace(LLAMA, restart_s=1.5 * HOUR, checkpoint_s=300.0),
    "no spare nodes": replace(LLAMA, gpus=2048, spare_nodes=0),
    "failures dominate": replace(LLAMA, gpus=131072, spare_nodes=400, checkpoint_s=120.0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_closed_form_is_the_mean_of_the_replay(name: str, factor: float) -> None:
    case = CASES[name]
    interval = max(factor * best_interval(case), case.write_s)
    expected = goodput(case, interval)
    failures = 20_000
    lived = replay(case, seconds=failures / case.rate * 1.2, seed=7, interval_s=interval)
    # Each share is a mean over so many independent attempts, whose spread is about its size.
    spread = 6.0 / math.sqrt(failures)
    for share in ("effective", "checkpoints", "lost", "restarts", "waiting"):
        value = getattr(expected, share)
        bound = spread * min(value, 1 - value) + 1e-3
        assert getattr(lived.use, share) == pytest.approx(value, abs=bound)
    assert sum(
        getattr(expected, share)
        for share in ("effective", "checkpoints", "lost", "restarts", "waiting")
    ) == pytest.approx(1.0)


@pytest.mark.parametrize("name", CASES)
def test_no_interval_is_better_than_the_best(name: str) -> None:
    case = replace(CASES[name], write_s=0.0)
    best = best_interval(case)
    most = goodput(case, best).effective
    for factor in (0.2, 0.9, 0.99, 1.01, 1.1, 5.0):
        assert goodput(case, factor * best).effective < most


def test_first_and_higher_order_intervals_approach_the_exact_one() -> None:
    errors = []
    for gpus in (1024, 16384, 262144):
        case = replace(LLAMA, gpus=gpus, checkpoint_s=60.0)
        exact = best_interval(case)
        young, daly = young_interval(case) / exact - 1, daly_interval(case) / exact - 1
        assert abs(daly) < abs(young)
        errors.append(abs(young))
    assert errors == sorted(errors)
    assert errors[0] < 0.02


def test_extremes() -> None:
    free = replace(LLAMA, checkpoint_s=0.0, restart_s=0.0, spare_nodes=1000)
    assert best_interval(free) == 0.0
    assert goodput(free).effective == pytest.approx(1.0)
    # A checkpoint that takes ten times the time between failures.
    hopeless = replace(LLAMA, gpu_mtbf_s=16384.0, checkpoint_s=10.0)
    assert goodput(hopeless).effective < 1e-3
    assert goodput(hopeless, 1e9).effective == 0.0
    assert best_interval(replace(LLAMA, write_s=1e5)) == 1e5


def test_spare_nodes_are_the_fewest_that_suffice() -> None:
    for availability in (0.9, 0.999, 0.999999):
        count = spare_nodes_for(LLAMA, availability)
        assert waiting_share(replace(LLAMA, spare_nodes=count)) <= 1 - availability
        if count:
            assert waiting_share(replace(LLAMA, spare_nodes=count - 1)) > 1 - availability
    assert spare_nodes_for(replace(LLAMA, hardware_share=0.0), 0.999) == 0


def test_replay_of_llama_3() -> None:
    assert LLAMA3_405B.failures == 419
    days = LLAMA3_405B.days
    # Restart and checkpoint times were not published: any mean loss of less than 18 minutes per
    # interruption gives the published share, such as these.
    case = replace(LLAMA, restart_s=300.0, checkpoint_s=5.0, write_s=120.0)
    lived = replay(case, seconds=days * DAY, seed=405, kinds=LLAMA3_405B.kinds)
    count = sum(lived.failures.values())
    assert abs(count - 419) < 4 * math.sqrt(419)
    assert lived.use.effective > LLAMA3_405B.effective
    assert goodput(case).effective > LLAMA3_405B.effective
    assert lived == replay(case, seconds=days * DAY, seed=405, kinds=LLAMA3_405B.kinds)
    assert lived != replay(case, seconds=days * DAY, seed=406, kinds=LLAMA3_405B.kinds)


def test_kinds_come_in_their_published_proportion() -> None:
    lived = replay(LLAMA, seconds=54 * DAY * 100, seed=3, kinds=LLAMA3_405B.kinds)
    total = sum(lived.failures.values())
    for kind in LLAMA3_405B.kinds:
        share = kind.count / 419
        spread = math.sqrt(share * (1 - share) / total)
        assert abs(lived.failures.get(kind.name, 0) / total - share) < 5 * spread

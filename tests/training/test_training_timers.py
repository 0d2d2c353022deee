"""Timers: levels, sums, and the text of the report."""

from __future__ import annotations

import re
import time

import pytest
import torch

from megacore.training.timers import LEVEL_OF_TIMER, Timers, format_timers

CPU = torch.device("cpu")


def make(level: int = 2, option: str = "minmax") -> Timers:
    return Timers(level=level, option=option, device=CPU)


def test_report_text_of_each_option() -> None:
    times = {"forward-backward": [12.344, 15.5], "optimizer": [1.0, 2.0]}
    assert format_timers(times, "minmax") == (
        "(min, max) time across ranks (ms):\n"
        "    forward-backward ...............................: (12.34, 15.50)\n"
        "    optimizer ......................................: (1.00, 2.00)"
    )
    assert format_timers(times, "max") == (
        "max time across ranks (ms):\n"
        "    forward-backward ...............................: 15.50\n"
        "    optimizer ......................................: 2.00"
    )
    assert format_timers(times, "all") == (
        "times across ranks (ms):\n"
        "  forward-backward:\n     rank  0: 12.34\n     rank  1: 15.50\n"
        "  optimizer:\n     rank  0: 1.00\n     rank  1: 2.00"
    )


@pytest.mark.parametrize("level", [0, 1, 2])
def test_timers_above_the_level_report_nothing(level: int) -> None:
    timers = make(level)
    for name in LEVEL_OF_TIMER:
        with timers.time(name):
            pass
    text = timers.report(list(LEVEL_OF_TIMER)) or ""
    shown = {line.split()[0] for line in text.splitlines()[1:]}
    assert shown == {name for name, its_level in LEVEL_OF_TIMER.items() if its_level <= level}


def test_nothing_counted_nothing_reported() -> None:
    assert make().report(["optimizer"]) is None


def test_time_adds_up_until_it_is_reset_and_is_divided() -> None:
    timers = make()
    started = time.perf_counter()
    for _ in range(3):
        with timers.time("optimizer"):
            time.sleep(0.002)
    upper = (time.perf_counter() - started) * 1000.0
    whole = timers.milliseconds(["optimizer"], reset=False)["optimizer"]
    assert 6.0 <= whole <= upper
    third = timers.milliseconds(["optimizer"], normalizer=3.0)["optimizer"]
    assert third == pytest.approx(whole / 3)
    assert timers.milliseconds(["optimizer"]) == {}


def test_a_running_timer_can_be_read_and_goes_on() -> None:
    timer = make()["interval-time"]
    timer.start()
    first = timer.elapsed(reset=False)
    time.sleep(0.001)
    assert timer.is_running
    assert timer.elapsed() > first
    timer.stop()
    assert not timer.is_running


def test_misuse_is_named() -> None:
    timer = make()["evaluate"]
    with pytest.raises(RuntimeError, match="stopped before"):
        timer.stop()
    timer.start()
    with pytest.raises(RuntimeError, match="twice"):
        timer.start()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError, match="no-such-timer"), make().time("no-such-timer"):
        pass


def test_names_are_padded_with_dots_to_a_column() -> None:
    for line in format_timers({name: [1.0] for name in LEVEL_OF_TIMER}, "max").splitlines()[1:]:
        assert re.fullmatch(r"    [a-z/-]+ \.+: 1\.00", line)
        assert line.index(":", line.index(" .")) == 4 + 48

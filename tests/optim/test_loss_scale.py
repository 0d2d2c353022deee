"""The dynamic loss scale against a slow transcription of its rules."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacore.errors import CheckpointError, UsageError
from megacore.optim.config import PrecisionConfig
from megacore.optim.loss_scale import ConstantLossScale, DynamicLossScale, build_loss_scale


def transcribed(
    history: list[bool], *, initial: int, minimum: int, window: int, hysteresis: int
) -> list[Fraction]:
    """The scale after each step, worked out from the whole history each time."""
    scales = []
    scale, clean_since, spent = Fraction(initial), 0, 0
    for overflow in history:
        if overflow:
            clean_since = 0
            spent += 1
            if spent >= hysteresis:
                scale = max(scale / 2, Fraction(minimum))
        else:
            clean_since += 1
            if clean_since == window:
                clean_since, spent = 0, 0
                scale *= 2
        scales.append(scale)
    return scales


@given(
    history=st.lists(st.booleans(), max_size=120),
    window=st.integers(1, 6),
    hysteresis=st.integers(1, 4),
    exponent=st.integers(0, 8),
)
def test_scale_follows_the_rules(
    history: list[bool], window: int, hysteresis: int, exponent: int
) -> None:
    scale = DynamicLossScale(
        initial=2.0**exponent, minimum=1.0, window=window, hysteresis=hysteresis
    )
    expected = transcribed(
        history, initial=2**exponent, minimum=1, window=window, hysteresis=hysteresis
    )
    for overflow, value in zip(history, expected, strict=True):
        scale.update(overflow=overflow)
        assert Fraction(scale.scale) == value


@given(history=st.lists(st.booleans(), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_state_goes_on_where_it_stopped(history: list[bool], cut: int) -> None:
    whole = DynamicLossScale(initial=64.0, window=3, hysteresis=2)
    resumed = DynamicLossScale(initial=2.0, window=3, hysteresis=2)
    for overflow in history[:cut]:
        whole.update(overflow=overflow)
    resumed.load_state(whole.state_values())
    for overflow in history[cut:]:
        whole.update(overflow=overflow)
        resumed.update(overflow=overflow)
        assert resumed.state_values() == whole.state_values()


def test_hysteresis_is_refilled_by_growth_only() -> None:
    scale = DynamicLossScale(initial=1024.0, window=4, hysteresis=2)
    seen = []
    for overflow in (True, False, False, True, True, False, False, False, False, True, True):
        scale.update(overflow=overflow)
        seen.append(scale.scale)
    assert seen == [1024, 1024, 1024, 512, 256, 256, 256, 256, 512, 512, 256]


def test_settings_choose_the_kind() -> None:
    assert build_loss_scale(PrecisionConfig()).scale == 1.0
    assert build_loss_scale(PrecisionConfig(bf16=True)).scale == 1.0
    static = build_loss_scale(PrecisionConfig(fp16=True, loss_scale=128.0))
    assert isinstance(static, ConstantLossScale)
    assert static.scale == 128.0
    dynamic = build_loss_scale(PrecisionConfig(fp16=True, loss_scale=0.0))
    assert isinstance(dynamic, DynamicLossScale)
    assert (dynamic.scale, dynamic.window, dynamic.hysteresis) == (2.0**32, 1000, 2)


def test_constant_ignores_overflow_and_stored_scales() -> None:
    scale = ConstantLossScale(8.0)
    scale.update(overflow=True)
    scale.load_state({"scale": 4.0, "growth_tracker": 1, "hysteresis_tracker": 1})
    assert scale.scale == 8.0


def test_dynamic_keeps_its_own_start_after_a_constant_run() -> None:
    scale = DynamicLossScale(initial=32.0)
    scale.load_state(ConstantLossScale(1.0).state_values())
    assert scale.scale == 32.0


def test_bad_values_are_named() -> None:
    with pytest.raises(UsageError, match="minimum 4"):
        DynamicLossScale(initial=2.0, minimum=4.0)
    with pytest.raises(UsageError, match="window and hysteresis"):
        DynamicLossScale(window=0)
    with pytest.raises(CheckpointError, match="hysteresis_tracker"):
        DynamicLossScale().load_state({"scale": 1.0, "growth_tracker": 0})

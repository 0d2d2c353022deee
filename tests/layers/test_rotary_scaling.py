"""Stretched wavelengths against the formulas of the papers, one lane at a time in float64."""

import math

import pytest
import torch

from megacore.layers.rotary import rotary_table, rotate
from megacore.layers.rotary_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
    longrope_attention_factor,
    yarn_attention_factor,
)
from megacore.layers.spec import RotarySpec
from megacore.testing.tolerance import expect_close

DIM, BASE, ORIGINAL = 22, 5000.0, 300
SHORT = tuple(1.0 + 0.1 * lane for lane in range(DIM // 2))
LONG = tuple(2.0 + 0.3 * lane for lane in range(DIM // 2))


def _llama3(lane, plain):
    wavelength = 2 * math.pi / plain
    if wavelength < ORIGINAL / 5.0:
        return plain
    if wavelength > ORIGINAL / 1.5:
        return plain / 7.0
    share = (ORIGINAL / wavelength - 1.5) / (5.0 - 1.5)
    return (1 - share) * plain / 7.0 + share * plain


def _yarn(lane, plain):
    first, last = (
        DIM * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(BASE))
        for turns in (20.0, 1.2)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), DIM - 1)
    stretched = min(max((lane - first) / (last - first), 0.0), 1.0)
    return plain * (1 - stretched) + plain / 3.5 * stretched


YARN = YarnScaling(
    factor=3.5,
    beta_fast=20.0,
    beta_slow=1.2,
    original_length=ORIGINAL,
    truncate=True,
    attention_factor=1.25,
)
LONGROPE = LongRopeScaling(
    short_factors=SHORT, long_factors=LONG, original_length=ORIGINAL, attention_factor=1.1
)
LLAMA3 = Llama3Scaling(
    factor=7.0, low_freq_factor=1.5, high_freq_factor=5.0, original_length=ORIGINAL
)
# scaling, frequency of a lane, factor of the rotated lanes, positions
CASES = {
    "linear": (LinearScaling(factor=2.5), lambda lane, plain: plain / 2.5, 1.0, 900),
    "llama3": (LLAMA3, _llama3, 1.0, 900),
    "yarn": (YARN, _yarn, 1.25, 900),
    "longrope, short": (LONGROPE, lambda lane, plain: plain / SHORT[lane], 1.1, ORIGINAL),
    "longrope, long": (LONGROPE, lambda lane, plain: plain / LONG[lane], 1.1, ORIGINAL + 1),
}


def _table(lane_frequency, factor, length):
    plain = [BASE ** (-2 * lane / DIM) for lane in range(DIM // 2)]
    lanes = torch.tensor([lane_frequency(i, p) for i, p in enumerate(plain)], dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * lanes
    return factor * angles.cos(), factor * angles.sin()


@pytest.mark.parametrize("name", CASES)
def test_against_the_formula(name):
    scaling, lane_frequency, factor, length = CASES[name]
    spec = RotarySpec(dim=DIM, base=BASE, interleaved=False, interpolation=1.0, scaling=scaling)
    cos, sin = _table(lane_frequency, factor, length)
    table = rotary_table(torch.arange(length)[None], spec, dtype=torch.float64)
    expect_close(table.cos[0, :, 0], cos, bound=1e-10)
    expect_close(table.sin[0, :, 0], sin, bound=1e-10)
    x = torch.randn(1, length, 2, DIM, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    out = rotate(x, table)
    # A rotation keeps the length of a vector, the factor stretches it; so does the gradient.
    expect_close(out.norm(dim=-1), factor * x.norm(dim=-1), bound=1e-10)
    (found,) = torch.autograd.grad(out, x, grad)
    expect_close((grad * out).sum(), (found * x).sum(), bound=1e-9)


def test_every_lane_of_llama3_and_yarn_is_of_another_kind():
    """The cases have lanes that are kept, stretched in full, and blended."""
    for lane_frequency, factor in ((_llama3, 7.0), (_yarn, 3.5)):
        plain = [BASE ** (-2 * lane / DIM) for lane in range(DIM // 2)]
        shares = {round(lane_frequency(i, p) / p, 9) for i, p in enumerate(plain)}
        assert {1.0, round(1 / factor, 9)} < shares


def test_rows_are_long_or_short_for_themselves():
    spec = RotarySpec(dim=DIM, base=BASE, interleaved=False, interpolation=1.0, scaling=LONGROPE)
    positions = torch.stack([torch.arange(4), torch.arange(ORIGINAL - 3, ORIGINAL + 1)])
    table = rotary_table(positions, spec, dtype=torch.float64)
    short, _ = _table(CASES["longrope, short"][1], 1.1, ORIGINAL + 1)
    long, _ = _table(CASES["longrope, long"][1], 1.1, ORIGINAL + 1)
    expect_close(table.cos[0, :, 0], short[:4], bound=1e-10)
    expect_close(table.cos[1, :, 0], long[ORIGINAL - 3 :], bound=1e-10)
    # A sequence that is being generated has the angles of its final length from the start.
    table = rotary_table(positions[:1], spec, dtype=torch.float64, length=ORIGINAL + 1)
    expect_close(table.cos[0, :, 0], long[:4], bound=1e-10)


def test_default_attention_factors():
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(32.0) == pytest.approx(1.3465735902799727, rel=1e-12)
    # Phi-3-mini-128k: sqrt(1 + ln 32 / ln 4096).
    assert longrope_attention_factor(32.0, 4096) == pytest.approx(1.1902380714238083, rel=1e-12)
    assert longrope_attention_factor(0.5, 4096) == 1.0

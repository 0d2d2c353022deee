"""Linear layers with 8-bit operands, and the delayed scales."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megacore.layers.fp8 import GRADIENT, INPUT, KINDS, WEIGHT, DelayedScales, Fp8Product
from megacore.layers.fp8_config import Fp8Config
from megacore.ops.fp8_quantize import E4M3, E5M2, largest

CPU = torch.device("cpu")
HYBRID = Fp8Config(fp8="hybrid")


def keep(amax: Tensor) -> None:
    """One process: nothing to put together."""


def scales_of(config: Fp8Config, names: int = 1) -> DelayedScales:
    return DelayedScales(config, [f"layer{i}" for i in range(names)], CPU)


def by_hand(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """What a tensor stands for after conversion, by torch's own cast, in float64."""
    limit = largest(dtype)
    return (x.float() * scale).clamp(-limit, limit).to(dtype).double() / scale


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [2, 5, 16], weight [24, 16], bias [24], gradient [2, 5, 24]."""
    torch.manual_seed(2)
    x = torch.randn(2, 5, 16).to(dtype).requires_grad_()
    weight = torch.randn(24, 16).to(dtype).requires_grad_()
    bias = torch.randn(24).to(dtype).requires_grad_()
    return x, weight, bias, torch.randn(2, 5, 24).to(dtype)


@pytest.mark.parametrize("wgrad", [True, False])
@pytest.mark.parametrize("form", ["e4m3", "hybrid"])
def test_delayed_products_are_those_of_converted_tensors(form: str, wgrad: bool) -> None:
    config = Fp8Config(fp8=form, fp8_wgrad=wgrad)
    scales = scales_of(config, names=2)
    scales.scale.copy_(torch.tensor([1.0, 1.0, 1.0, 50.0, 70.0, 90.0]))
    x, weight, bias, dy = problem()
    y = Fp8Product(config, scales, 1)(x, weight, bias)
    y.backward(dy)
    backward = E5M2 if form == "hybrid" else E4M3
    x8, w8, dy8 = by_hand(x, 50.0, E4M3), by_hand(weight, 70.0, E4M3), by_hand(dy, 90.0, backward)
    want_dw = dy8.flatten(0, 1).t() @ x8.flatten(0, 1)
    if not wgrad:
        want_dw = dy.double().flatten(0, 1).t() @ x.detach().double().flatten(0, 1)
    for found, want in (
        (y, x8 @ w8.t() + bias.double()),
        (x.grad, dy8 @ w8),
        (weight.grad, want_dw),
        (bias.grad, dy.double().sum((0, 1))),
    ):
        assert found is not None
        assert torch.allclose(found.double(), want, rtol=1e-5, atol=1e-4)
    assert torch.equal(scales.amax[:KINDS], torch.zeros(KINDS))
    amax = [x.abs().max(), weight.abs().max(), dy.abs().max()]
    assert torch.equal(scales.amax[KINDS:], torch.stack(amax).detach())


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_recipes_lose_no_more_than_their_mantissa(recipe: str, dtype: torch.dtype) -> None:
    config = Fp8Config(fp8="e4m3", fp8_recipe=recipe)
    x, weight, _, dy = problem(dtype)
    # Far from 1, which these recipes do not care for.
    with torch.no_grad():
        x *= 2.0**40
    y = Fp8Product(config, None, 0)(x, weight, None)
    y.backward(dy)
    plain = x.detach().double() @ weight.detach().double().t()
    for found, want in (
        (y, plain),
        (x.grad, dy.double() @ weight.detach().double()),
        (weight.grad, dy.double().flatten(0, 1).t() @ x.detach().double().flatten(0, 1)),
    ):
        assert found is not None
        # Two roundings of up to 2^-4 each, in random directions.
        assert (found.double() - want).norm() < 2.0**-4 * want.norm()


def test_evaluation_changes_no_scale() -> None:
    scales = scales_of(HYBRID)
    x, weight, bias, _ = problem()
    with torch.no_grad():
        Fp8Product(HYBRID, scales, 0)(x, weight, bias)
    assert not scales.amax.any()


def test_what_is_kept_has_one_byte_an_element() -> None:
    x, weight, _, _ = problem()
    for config, sizes in ((HYBRID, {1}), (dataclasses.replace(HYBRID, fp8_wgrad=False), {1, 4})):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.append(t), t)[1], lambda t: t
        ):
            Fp8Product(config, scales_of(config), 0)(x, weight, None)
        assert {t.element_size() for t in kept if t.numel() > 1} == sizes


def test_scales_follow_the_history() -> None:
    config = Fp8Config(
        fp8="hybrid", fp8_amax_history_len=3, fp8_amax_compute_algo="max", fp8_margin=2
    )
    scales = scales_of(config)
    limits = [448.0, 448.0, 57344.0]
    seen = [[2.0, 8.0, 1.0], [1.0, 16.0, 1.0], [1.0, 4.0, 0.0], [0.5, 2.0, 0.0], [0.5, 1.0, 0.0]]
    for step, amax in enumerate(seen):
        scales.amax.copy_(torch.tensor(amax))
        scales.update(keep)
        recent = torch.tensor(seen[max(0, step - 2) : step + 1]).amax(0)
        want = [limit / a / 4 if a else None for limit, a in zip(limits, recent, strict=True)]
        for kind in (INPUT, WEIGHT, GRADIENT):
            # Nothing but zeros leaves the scale of the last time there was something else.
            assert scales.scale[kind].item() == (want[kind] or 57344.0 / 4)
    assert not scales.amax.any()


def test_most_recent_interval_and_what_is_not_finite() -> None:
    config = Fp8Config(fp8="e4m3", fp8_interval=2, fp8_amax_history_len=4)
    scales = scales_of(config)
    for amax, want in ((1.0, 1.0), (2.0, 224.0), (4.0, 224.0), (float("inf"), 224.0)):
        scales.amax.fill_(amax)
        scales.update(keep)
        assert scales.scale[0].item() == want


def test_state_goes_on_where_it_was() -> None:
    config = Fp8Config(fp8="hybrid", fp8_amax_history_len=3, fp8_amax_compute_algo="max")
    one = scales_of(config, names=2)
    for step in range(5):
        one.amax.copy_(torch.rand(2 * KINDS, generator=torch.Generator().manual_seed(step)))
        one.update(keep)
    other = scales_of(config, names=2)
    assert other.load_state(one.state_values()) == []
    for name in ("scale", "history", "num_updates"):
        assert torch.equal(
            torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name))
        )
    # A shorter and a longer history, and layers that the state does not know.
    short = scales_of(dataclasses.replace(config, fp8_amax_history_len=2), names=3)
    assert short.load_state(one.state_values()) == ["layer2"]
    assert torch.equal(short.history[:, : 2 * KINDS], one.history[:2])
    assert scales_of(config).load_state({"layer0": {"scale": "x"}}) == ["layer0"]

"""Rotation against complex multiplication in float64."""

import pytest
import torch

from megacore.layers.rotary import rotary_table, rotate
from megacore.layers.spec import RotarySpec
from megacore.testing.tolerance import expect_close


def _exact(x, positions, spec):
    """Each pair of lanes is a complex number, multiplied by exp(i * angle)."""
    half = spec.dim // 2
    x, lanes = x.double(), torch.arange(half, dtype=torch.float64)
    angles = positions.double()[..., None] / spec.interpolation
    angles = angles * spec.base ** (-2 * lanes / spec.dim)
    if spec.interleaved:
        pairs = torch.complex(x[..., 0 : spec.dim : 2], x[..., 1 : spec.dim : 2])
    else:
        pairs = torch.complex(x[..., :half], x[..., half : spec.dim])
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    if spec.interleaved:
        front = torch.view_as_real(turned).flatten(-2)
    else:
        front = torch.cat([turned.real, turned.imag], dim=-1)
    return torch.cat([front, x[..., spec.dim :]], dim=-1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("width", "dim"), [(2, 2), (14, 14), (14, 6), (15, 8)])
@pytest.mark.parametrize("interpolation", [1.0, 4.0])
def test_against_complex_numbers(interleaved, width, dim, interpolation):
    torch.manual_seed(9)
    spec = RotarySpec(dim=dim, base=500.0, interleaved=interleaved, interpolation=interpolation)
    x = torch.randn(3, 17, 2, width, dtype=torch.float64, requires_grad=True)
    positions = torch.randint(0, 5000, (3, 17))
    out = rotate(x, rotary_table(positions, spec, dtype=torch.float64))
    expect_close(out, _exact(x, positions, spec), bound=1e-11)
    grad = torch.randn_like(out)
    # The gradient of a rotation is the rotation back.
    expect_close(torch.autograd.grad(out, x, grad)[0], _exact(grad, -positions, spec), bound=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    spec = RotarySpec(dim=8, base=10000.0, interleaved=False, interpolation=1.0)
    x = torch.randn(2, 9, 3, 10).to(dtype)
    positions = torch.arange(9)[None]
    out = rotate(x, rotary_table(positions, spec, dtype=dtype))
    assert out.dtype == dtype
    exact = _exact(x, positions, spec)
    # Half a unit in the last place of the result, and float32 rounding of the terms before it.
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
    expect_close(out, exact, bound=bound)
    assert torch.equal(out[..., 8:], x[..., 8:])

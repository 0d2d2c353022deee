"""Comparing tensors with derived bounds, and a message that helps when they differ."""

from __future__ import annotations

import torch
from torch import Tensor


def expect_close(
    actual: Tensor, reference: Tensor, *, bound: float | Tensor = 0.0, name: str = "tensor"
) -> None:
    """Fail unless |actual - reference| <= bound everywhere.

    Args:
        actual: Result under test.
        reference: What it should be; same shape, usually of higher precision.
        bound: Largest allowed absolute difference, one or per element; 0 asks for equality.
        name: What the tensor is, for the message.

    Raises:
        AssertionError: Says how many elements differ, where the first one is, both values, and
            the largest error as a share of the bound.
    """
    if actual.shape != reference.shape:
        raise AssertionError(
            f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
        )
    actual64, reference64 = actual.detach().double(), reference.detach().double()
    bounds = torch.as_tensor(bound, dtype=torch.float64, device=actual.device)
    error = (actual64 - reference64).abs()
    # "not <=" so that a NaN counts as a mismatch; equal infinities are equal.
    bad = ~(error <= bounds) & (actual64 != reference64)
    if not bool(bad.any()):
        return
    first = tuple(bad.nonzero()[0].tolist())
    limit = bounds.expand_as(error)
    share = (error / limit)[bad].nan_to_num(nan=float("inf")).max().item()
    raise AssertionError(
        f"{name}: {int(bad.sum())} of {bad.numel()} elements differ; first at {first}: "
        f"{actual64[first].item():.9g}, expected {reference64[first].item():.9g} "
        f"(bound {limit[first].item():.3g}); largest error is {share:.3g} x the bound"
    )


def twice_torch_error(
    torch_value: Tensor, reference: Tensor, *, dtype: torch.dtype | None = None
) -> float:
    """Twice the largest error that plain PyTorch makes, as the bound for a result of ours.

    Where PyTorch happens to be exact, one rounding of the largest element is allowed instead.

    Args:
        torch_value: PyTorch's result in the dtype under test.
        reference: The same in float64.
        dtype: Dtype under test; default that of `torch_value`.
    """
    reference64 = reference.detach().double()
    error = (torch_value.detach().double() - reference64).abs().max().item()
    rounding = torch.finfo(dtype or torch_value.dtype).eps * reference64.abs().max().item()
    return 2.0 * max(error, rounding / 2.0)


def rms_error(actual: Tensor, reference: Tensor) -> float:
    """Root mean square of actual - reference, in float64.

    For tensors of few elements a steadier measure of rounding error than the largest difference,
    and no less sharp: one wrong element is many orders above rounding.
    """
    return (actual.detach().double() - reference.detach().double()).square().mean().sqrt().item()

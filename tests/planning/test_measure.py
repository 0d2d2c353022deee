"""Memory and arithmetic of small programs whose use is known."""

from __future__ import annotations

import torch

from megacore.planning.measure import Meter


def test_memory_is_counted_while_it_is_held() -> None:
    meter = Meter()
    with meter:
        with meter.measure() as whole:
            a = torch.empty(1000, device="meta")
            with meter.measure() as inner:
                b = a.view(10, 100) + 1.0
                c = torch.empty(50, dtype=torch.float64, device="meta")
                d = b[2:4].t()
                del b
            kept = d.shape
            del c, d
            with meter.measure() as nothing:
                a.mul_(2.0)
        assert kept == (100, 2)
    # The view keeps the whole of b.
    assert (inner.kept_bytes, inner.peak_bytes) == (4000 + 400, 4000 + 400)
    assert (nothing.kept_bytes, nothing.peak_bytes) == (0, 0)
    assert (whole.kept_bytes, whole.peak_bytes) == (4000, 8400)


def test_existing_tensors_are_not_counted() -> None:
    a = torch.empty(1000, device="meta")
    meter = Meter([a])
    with meter, meter.measure() as use:
        b = a[3:]
        c = b + 1.0
    assert (use.kept_bytes, c.nbytes) == (997 * 4, 997 * 4)


def test_backward_and_flops() -> None:
    x = torch.empty(8, 16, device="meta", requires_grad=True)
    w = torch.empty(16, 32, device="meta", requires_grad=True)
    meter = Meter([x, w])
    with meter:
        with meter.measure() as forward:
            y = (x @ w).relu()
        with meter.measure() as backward:
            y.sum().backward()
    assert forward.kept_bytes == 8 * 32 * 4
    assert forward.peak_bytes == 2 * 8 * 32 * 4
    assert forward.flops == 2 * 8 * 16 * 32
    assert backward.flops == 2 * forward.flops
    assert backward.kept_bytes == x.nbytes + w.nbytes
    assert x.grad is not None


def test_works_on_real_memory() -> None:
    x = torch.ones(8, 16, requires_grad=True)
    meter = Meter([x])
    with meter, meter.measure() as use:
        y = (x * 2.0).exp()
        y.sum().backward()
    assert x.grad is not None
    assert use.kept_bytes == 2 * 8 * 16 * 4

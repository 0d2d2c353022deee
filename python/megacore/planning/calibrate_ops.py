"""Speeds of one process: matrix products, attention, memory, starting an operation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Rows (tokens), columns, inner dimension; as in layers of several widths.
_CPU_SHAPES = (
    (512, 512, 64),
    (512, 512, 128),
    (256, 768, 256),
    (512, 512, 512),
    (512, 1024, 512),
    (256, 2048, 512),
    (512, 1024, 1024),
    (256, 1024, 2048),
)
_GPU_SHAPES = (
    (2048, 4096, 512),
    (2048, 4096, 1024),
    (4096, 4096, 2048),
    (4096, 4096, 4096),
    (2048, 12288, 4096),
    (8192, 4096, 4096),
    (4096, 16384, 4096),
    (4096, 8192, 8192),
    (8192, 8192, 8192),
)
_CPU_ATTENTION, _GPU_ATTENTION = ((2, 4, 256, 64), (1, 4, 512, 64)), ((2, 16, 4096, 128),)
_MIN_REPEATS = 5


@dataclass(frozen=True)
class Clock:
    """Measures calls on a device.

    On a GPU events around each call are timed; no GPU has run this.

    Attributes:
        device: Where the calls run.
        budget_s: About how long each measurement may take.
    """

    device: torch.device
    budget_s: float = 0.25

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call, seconds."""
        for _ in range(2):
            call()
        times: list[float] = []
        end = time.perf_counter() + self.budget_s
        while len(times) < _MIN_REPEATS or time.perf_counter() < end:
            times.append(self._once(call))
        return statistics.median(times)

    def _once(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3


@dataclass(frozen=True, kw_only=True)
class MatmulFit:
    """Speed of products as a function of their inner dimension k: rate / (1 + half_k / k).

    Attributes:
        rate: FLOP/s of a long inner dimension.
        half_k: Inner dimension that reaches half of it.
        best: Highest FLOP/s measured.
    """

    rate: float
    half_k: float
    best: float


def measure_matmul(clock: Clock, dtype: torch.dtype) -> MatmulFit:
    """Products x w^T of several shapes."""
    shapes = _GPU_SHAPES if clock.device.type == "cuda" else _CPU_SHAPES
    points = []
    for rows, cols, inner in shapes:
        x = torch.randn(rows, inner, device=clock.device).to(dtype)
        w = torch.randn(cols, inner, device=clock.device).to(dtype)

        def call(x: Tensor = x, w: Tensor = w) -> Tensor:
            return functional.linear(x, w)

        points.append((inner, 2.0 * rows * cols * inner / clock.seconds(call)))
    return fit_matmul(points)


def fit_matmul(points: list[tuple[int, float]]) -> MatmulFit:
    """The fit of least relative error.

    Args:
        points: Inner dimension and FLOP/s; at least two dimensions.
    """
    # 1/speed = a + b/k, so that speed (a + b/k) should be 1: linear in a and b.
    rows = torch.tensor([[speed, speed / k] for k, speed in points], dtype=torch.float64)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    a, b = torch.linalg.lstsq(rows, ones).solution.flatten().tolist()
    best = max(speed for _, speed in points)
    if a <= 0 or b < 0:
        # No dimension is long or short enough to tell the two apart.
        a, b = statistics.median(1.0 / speed for _, speed in points), 0.0
    return MatmulFit(rate=1.0 / a, half_k=b / a, best=best)


def measure_weight_grad(clock: Clock, dtype: torch.dtype) -> float:
    """Speed of products that add to an fp32 gradient, relative to plain ones."""
    rows, cols, inner = (4096, 4096, 4096) if clock.device.type == "cuda" else (512, 512, 512)
    x = torch.randn(rows, inner, device=clock.device).to(dtype)
    dy = torch.randn(rows, cols, device=clock.device).to(dtype)
    total = torch.zeros(cols, inner, device=clock.device)
    plain = clock.seconds(lambda: dy.t() @ x)
    if dtype == torch.float32:
        return plain / clock.seconds(lambda: total.addmm_(dy.t(), x))
    return plain / clock.seconds(lambda: total.add_(dy.t() @ x))


def measure_attention(clock: Clock, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of causal attention, counting its lower half: forward, and backward (2.5 times)."""
    sizes = _GPU_ATTENTION if clock.device.type == "cuda" else _CPU_ATTENTION
    forwards, backwards = [], []
    for batch, heads, length, width in sizes:
        q, k, v = (
            torch.randn(batch, heads, length, width, device=clock.device).to(dtype).requires_grad_()
            for _ in range(3)
        )
        grad = torch.randn(batch, heads, length, width, device=clock.device).to(dtype)
        flops = 2.0 * batch * heads * length * length * width

        def forward(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            with torch.no_grad():
                return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        def both(q: Tensor = q, k: Tensor = k, v: Tensor = v, grad: Tensor = grad) -> object:
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return torch.autograd.grad(out, (q, k, v), grad)

        there = clock.seconds(forward)
        back = max(clock.seconds(both) - there, 0.1 * there)
        forwards.append(flops / there)
        backwards.append(2.5 * flops / back)
    return statistics.median(forwards), statistics.median(backwards)


def measure_memory(clock: Clock) -> float:
    """Bytes per second, read and written, of additions to tensors larger than caches."""
    elements = 64 << 20 if clock.device.type == "cuda" else 8 << 20
    x, y = (torch.ones(elements, device=clock.device) for _ in range(2))
    return 3 * x.nbytes / clock.seconds(lambda: x.add_(y))


def measure_overhead(clock: Clock) -> float:
    """Seconds that an operation on almost nothing takes, one of many in a row."""
    x = torch.ones(1, device=clock.device)

    def many() -> None:
        for _ in range(100):
            x.add_(1.0)

    return clock.seconds(many) / 100

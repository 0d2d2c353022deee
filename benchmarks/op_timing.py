"""Timing of an op beside its peer in one process, in turns, and the bandwidth of a plain copy."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], object]
HEADER = f"{'what':34s} {'ours ms':>9s} {'peer ms':>9s} {'ratio':>6s} {'of copy':>8s}"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Parser with the options that every benchmark of an op has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    return parser


def _once(call: Call, device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(calls: list[Call], device: str, repeats: int) -> list[float]:
    """Median seconds of each call, taken in turns, after two rounds that do not count."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeats + 2):
        for call, taken in zip(calls, times, strict=True):
            seconds = _once(call, device)
            if number >= 2:
                taken.append(seconds)
    return [statistics.median(taken) for taken in times]


def copy_bandwidth(device: str, mib: int = 256) -> float:
    """Bytes per second that a copy between two buffers reads and writes together."""
    source = torch.ones(mib << 18, device=device)
    target = torch.empty_like(source)
    (seconds,) = medians([lambda: target.copy_(source)], device, 9)
    return 2 * source.nbytes / seconds


def forward_backward(function: Callable[..., Tensor], inputs: list[Tensor], dout: Tensor) -> Call:
    """A call of `function` and of its backward, which drops the gradients."""

    def call() -> None:
        torch.autograd.grad(function(*inputs), inputs, dout)

    return call


def row(name: str, ours: float, peer: float, moved_bytes: int, bandwidth: float) -> str:
    """One line of the table; `moved_bytes` are the compulsory ones."""
    share = moved_bytes / ours / bandwidth
    return f"{name:34s} {ours * 1e3:9.2f} {peer * 1e3:9.2f} {peer / ours:5.2f}x {share:7.0%}"

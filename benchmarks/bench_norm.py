"""Norm kernels against PyTorch's own functions, forward and forward plus backward.

python benchmarks/bench_norm.py [--device cpu] [--rows 2048] [--hidden 1024]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from megacore.ops.norm import layer_norm, rms_norm

EPS = 1e-5


def median_us(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call in microseconds, after three calls that do not count."""
    times = []
    for number in range(repeats + 3):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    print(f"[{args.rows}, {args.hidden}] on {args.device}, {torch.get_num_threads()} threads")
    size = (args.hidden,)
    layer_norm_peer, rms_norm_peer = torch.nn.functional.layer_norm, torch.nn.functional.rms_norm
    print("norm       dtype      pass      megacore us   torch us   ratio")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(args.rows, args.hidden, device=args.device).to(dtype).requires_grad_()
        weight = torch.randn(args.hidden, device=args.device).to(dtype).requires_grad_()
        bias = torch.randn(args.hidden, device=args.device).to(dtype).requires_grad_()
        dout = torch.randn_like(x)
        pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            "layer_norm": (
                lambda x=x, w=weight, b=bias: layer_norm(x, w, b, eps=EPS),
                lambda x=x, w=weight, b=bias: layer_norm_peer(x, size, w, b, EPS),
            ),
            "rms_norm": (
                lambda x=x, w=weight: rms_norm(x, w, eps=EPS),
                lambda x=x, w=weight: rms_norm_peer(x, size, w, EPS),
            ),
        }
        for name, functions in pairs.items():
            with torch.no_grad():
                forward = [median_us(f, args.device, args.repeats) for f in functions]
            both = [
                median_us(lambda f=f, dout=dout: f().backward(dout), args.device, args.repeats)
                for f in functions
            ]
            for label, (ours, theirs) in (("forward", forward), ("fwd+bwd", both)):
                kind = str(dtype).removeprefix("torch.")
                print(
                    f"{name:10s} {kind:10s} {label:8s} {ours:11.0f} {theirs:10.0f} "
                    f"{theirs / ours:7.2f}"
                )


if __name__ == "__main__":
    main()

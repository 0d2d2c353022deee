"""The AdamW kernel against torch.optim.AdamW(fused=True) followed by a copy to bfloat16.

python benchmarks/bench_adamw.py [--device cpu] [--size 20000000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from megacore.ops.adamw import adamw_step

BYTES_WITH_COPY = 30  # read param, grad, m, v; write param, m, v and the 16-bit copy


def median_ms(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call in milliseconds, after two calls that do not count."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    param = torch.randn(args.size, device=args.device)
    grad = torch.randn(args.size, device=args.device)
    moments = [torch.zeros(args.size, device=args.device) for _ in range(2)]
    copy = torch.empty(args.size, dtype=torch.bfloat16, device=args.device)
    theirs = param.clone().requires_grad_()
    theirs.grad = grad.clone()
    optimizer = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.1, fused=True)

    def ours() -> None:
        adamw_step(
            param,
            grad,
            *moments,
            model_param=copy,
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.1,
            step=7,
        )

    def torch_step() -> None:
        optimizer.step()
        copy.copy_(theirs.detach())

    own_ms = median_ms(ours, args.device, args.repeats)
    torch_ms = median_ms(torch_step, args.device, args.repeats)
    rate = BYTES_WITH_COPY * args.size / own_ms / 1e6
    print(
        f"{args.size} parameters on {args.device}, {torch.get_num_threads()} threads: "
        f"megacore {own_ms:.1f} ms ({rate:.1f} GB/s), torch fused + copy {torch_ms:.1f} ms, "
        f"ratio {torch_ms / own_ms:.2f}"
    )


if __name__ == "__main__":
    main()

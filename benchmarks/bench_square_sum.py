"""The norm of a flat gradient, with what is not finite, against torch's norm and isfinite.

python benchmarks/bench_square_sum.py [--device cpu] [--size 50000000]
"""

from __future__ import annotations

import torch
from op_timing import arguments, copy_bandwidth, medians

from megacore.ops.square_sum import square_sum


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=50_000_000)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(f"{args.size} elements on {args.device}, {torch.get_num_threads()} threads")
    print(f"copy: {bandwidth / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(args.size, device=args.device).to(dtype)
        own, norm, both = medians(
            [
                lambda x=x: square_sum(x),
                lambda x=x: torch.linalg.vector_norm(x, dtype=torch.float32),
                lambda x=x: (torch.linalg.vector_norm(x, dtype=torch.float32), x.isfinite().all()),
            ],
            args.device,
            args.repeats,
        )
        name = str(dtype).removeprefix("torch.")
        print(
            f"{name}: megacore {own * 1e3:.2f} ms ({x.nbytes / own / 1e9:.1f} GB/s), torch's norm "
            f"{norm * 1e3:.2f} ms (ratio {norm / own:.2f}), with isfinite {both * 1e3:.2f} ms "
            f"(ratio {both / own:.2f})"
        )


if __name__ == "__main__":
    main()

"""Conversion to E4M3 with a scale and the largest magnitude against torch.compile of the same.

python benchmarks/bench_fp8_quantize.py [--device cpu] [--rows 4096] [--columns 3072]
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import arguments, medians
from torch import Tensor

from megacore.ops.fp8_quantize import E4M3, largest, quantize, quantize_blocks


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=3072)
    args = parser.parse_args()
    scale = torch.tensor([3.0], device=args.device)
    amax = torch.zeros(1, device=args.device)
    limit = largest(E4M3)

    @partial(torch.compile, dynamic=False)
    def peer(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        return (wide * scale).clamp(-limit, limit).to(E4M3), wide.abs().amax()

    print(f"[{args.rows}, {args.columns}] on {args.device}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(args.rows, args.columns, device=args.device).to(dtype)
        own, blocks, theirs = medians(
            [
                lambda x=x: quantize(x, scale, amax, E4M3),
                lambda x=x: quantize_blocks(x, 1, E4M3),
                lambda x=x: peer(x),
            ],
            args.device,
            args.repeats,
        )
        moved = x.nbytes + x.numel()
        name = str(dtype).removeprefix("torch.")
        print(
            f"{name}: one scale {own * 1e3:.2f} ms ({moved / own / 1e9:.1f} GB/s), blocks of "
            f"1 x 128 {blocks * 1e3:.2f} ms, torch.compile with one scale {theirs * 1e3:.2f} ms "
            f"(ratio {theirs / own:.2f})"
        )


if __name__ == "__main__":
    main()

"""Dropout with residual against torch.compile of PyTorch's dropout and addition.

python benchmarks/bench_dropout_add.py [--device cpu] [--rows 4096] [--hidden 768] [--drop 0.1]
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from op_timing import HEADER, arguments, copy_bandwidth, forward_backward, medians, row
from torch import Tensor

from megacore.ops.dropout_add import dropout_add


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--drop", type=float, default=0.1)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(f"[{args.rows}, {args.hidden}], {torch.get_num_threads()} threads, forward + backward;")
    print(f"peer: torch.compile of dropout and addition; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)

    def ours(x: Tensor, residual: Tensor) -> Tensor:
        return dropout_add(x, residual, drop=args.drop, seed=1)

    @partial(torch.compile, dynamic=False)
    def peer(x: Tensor, residual: Tensor) -> Tensor:
        return residual + F.dropout(x, args.drop)

    new = partial(torch.randn, args.rows, args.hidden, device=args.device)
    for dtype in (torch.float32, torch.bfloat16):
        x, residual = (new().to(dtype).requires_grad_() for _ in range(2))
        dout = new().to(dtype)
        pair = [forward_backward(function, [x, residual], dout) for function in (ours, peer)]
        times = medians(pair, args.device, args.repeats)
        name = str(dtype).removeprefix("torch.")
        print(row(name, *times, 5 * x.nbytes, bandwidth), flush=True)


if __name__ == "__main__":
    main()

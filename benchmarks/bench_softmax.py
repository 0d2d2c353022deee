"""Softmax of attention scores against torch.compile of scale, mask and softmax.

python benchmarks/bench_softmax.py [--device cpu] [--heads 12] [--length 1024]
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, forward_backward, medians, row
from torch import Tensor

from megacore.ops.softmax import softmax


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--length", type=int, default=1024)
    args = parser.parse_args()
    heads, length, device = args.heads, args.length, args.device
    bandwidth = copy_bandwidth(device)
    shape = (1, heads, length, length)
    print(f"{list(shape)}, {torch.get_num_threads()} threads, forward + backward")
    print(f"peer: torch.compile of scale, mask and softmax; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)
    padding = (torch.arange(length, device=device) >= length * 9 // 10).expand(1, 1, length, length)

    for dtype, causal in itertools.product((torch.float32, torch.bfloat16), (False, True)):

        def ours(x: Tensor, causal: bool = causal) -> Tensor:
            if causal:
                return softmax(x, scale=0.125, causal=True)
            return softmax(x, padding, scale=0.125)

        @partial(torch.compile, dynamic=False)
        def peer(x: Tensor, causal: bool = causal) -> Tensor:
            scores = (x.float() * 0.125).masked_fill(hidden if causal else padding, float("-inf"))
            return scores.softmax(-1).to(x.dtype)

        x = torch.randn(shape, device=device).to(dtype).requires_grad_()
        dout = torch.randn(x.shape, device=device).to(dtype)
        pair = [forward_backward(function, [x], dout) for function in (ours, peer)]
        times = medians(pair, device, args.repeats)
        name = f"{str(dtype).removeprefix('torch.')} {'causal' if causal else 'padding'}"
        # Of causal scores half is read, and all is written.
        moved = (3.5 if causal else 5) * x.nbytes
        print(row(name, *times, int(moved), bandwidth), flush=True)


if __name__ == "__main__":
    main()

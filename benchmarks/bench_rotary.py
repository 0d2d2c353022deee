"""Rotary embedding of a query/key/value projection against torch.compile of the reference.

python benchmarks/bench_rotary.py [--device cpu] [--batch-size 4] [--length 1024] [--groups 12]
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, medians, row

from megacore.ops.rotary import rotary_split, rotary_split_reference


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--ratio", type=int, default=1, help="query heads of a group")
    parser.add_argument("--head-size", type=int, default=64)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    shape = (args.batch_size, args.length, args.groups, args.ratio + 2, args.head_size)
    print(f"{list(shape)}, {torch.get_num_threads()} threads, forward + backward;")
    print(f"peer: torch.compile of the reference; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)
    new = partial(torch.randn, device=args.device)
    angles = new(args.length, args.head_size // 2)
    cos, sin = angles.cos(), angles.sin()
    for dtype in (torch.float32, torch.bfloat16):
        qkv = new(*shape).to(dtype).requires_grad_()
        for interleaved in (False, True):
            compiled = torch.compile(rotary_split_reference, dynamic=False)
            grads = [torch.randn_like(out) for out in rotary_split(qkv, cos, sin)]

            def call(function, qkv=qkv, interleaved=interleaved, grads=grads) -> None:  # type: ignore[no-untyped-def]
                outs = function(qkv, cos, sin, interleaved=interleaved)
                torch.autograd.grad(outs, qkv, grads)

            pair = [partial(call, function) for function in (rotary_split, compiled)]
            ours, peer = medians(pair, args.device, args.repeats)
            label = "interleaved" if interleaved else "half-split"
            name = f"{label}, {str(dtype).removeprefix('torch.')}"
            print(row(name, ours, peer, 4 * qkv.nbytes, bandwidth), flush=True)


if __name__ == "__main__":
    main()

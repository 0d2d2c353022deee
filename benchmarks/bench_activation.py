"""Activation kernels against torch.compile of the reference, forward plus backward.

python benchmarks/bench_activation.py [--device cpu] [--rows 4096] [--inner 3072]
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, forward_backward, medians, row

from megacore.ops.activation import activation, activation_reference

CASES = (
    ("gelu_tanh + bias", "gelu_tanh", False, True),
    ("gelu_erf + bias", "gelu_erf", False, True),
    ("squared_relu", "squared_relu", False, False),
    ("SwiGLU", "silu", True, False),
    ("GEGLU", "gelu_tanh", True, False),
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=3072)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(f"[{args.rows}, {args.inner}], {torch.get_num_threads()} threads, forward + backward;")
    print(f"peer: torch.compile of the reference; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)
    for dtype in (torch.float32, torch.bfloat16):
        for label, kind, gated, with_bias in CASES:
            width = args.inner * (2 if gated else 1)
            new = partial(torch.randn, device=args.device)
            x = new(args.rows, width).to(dtype).requires_grad_()
            bias = new(width).to(dtype).requires_grad_()
            dout = new(args.rows, args.inner).to(dtype)
            inputs = [x, bias] if with_bias else [x]
            torch.compiler.reset()  # else the ninth variant would run uncompiled
            compiled = torch.compile(activation_reference, dynamic=False)
            pair = [
                forward_backward(
                    lambda x, bias=None, f=f, kind=kind, gated=gated: f(
                        x, kind, bias=bias, gated=gated
                    ),
                    inputs,
                    dout,
                )
                for f in (activation, compiled)
            ]
            ours, peer = medians(pair, args.device, args.repeats)
            moved = 3 * x.nbytes + 2 * dout.nbytes  # x twice, dx; out, dout
            kind_name = str(dtype).removeprefix("torch.")
            print(row(f"{label}, {kind_name}", ours, peer, moved, bandwidth), flush=True)


if __name__ == "__main__":
    main()

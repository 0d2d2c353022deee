"""Cross entropy, alone and with the output projection, against torch.compile of the reference.

python benchmarks/bench_cross_entropy.py [--device cpu] [--tokens 512] [--vocab-size 131072]
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, medians, row
from torch import Tensor

from megacore.ops.cross_entropy import cross_entropy, cross_entropy_reference
from megacore.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=768)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(
        f"[{args.tokens}, {args.vocab_size}], hidden {args.hidden}, "
        f"{torch.get_num_threads()} threads, forward + backward;"
    )
    print(f"peer: torch.compile of the reference; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)
    new = partial(torch.randn, device=args.device)
    labels = torch.randint(args.vocab_size, (args.tokens,), device=args.device)
    grad = torch.rand(args.tokens, device=args.device)
    compiled = torch.compile(cross_entropy_reference, dynamic=False)
    compiled_linear = torch.compile(linear_cross_entropy_reference, dynamic=False)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        logits = new(args.tokens, args.vocab_size).to(dtype).requires_grad_()

        # Ours writes the gradient over the logits: after the first call they are others, and
        # the time is the same.
        def alone(function, logits: Tensor = logits) -> None:  # type: ignore[no-untyped-def]
            torch.autograd.grad(function(logits, labels), logits, grad)

        pair = [partial(alone, function) for function in (cross_entropy, compiled)]
        ours, peer = medians(pair, args.device, args.repeats)
        print(row(f"cross entropy, {name}", ours, peer, 3 * logits.nbytes, bandwidth), flush=True)

        hidden = new(args.tokens, args.hidden).to(dtype).requires_grad_()
        weight = (new(args.vocab_size, args.hidden) * 0.02).to(dtype).requires_grad_()

        def fused(function, inputs=(hidden, weight)) -> None:  # type: ignore[no-untyped-def]
            total, _ = function(*inputs, labels)
            torch.autograd.grad(total, inputs)

        pair = [partial(fused, function) for function in (linear_cross_entropy, compiled_linear)]
        ours, peer = medians(pair, args.device, max(3, args.repeats // 3))
        flops = 6 * args.tokens * args.vocab_size * args.hidden
        label = f"with projection, {name}, {flops / ours / 1e9:.0f} GFLOP/s"
        print(f"{label:34s} {ours * 1e3:9.2f} {peer * 1e3:9.2f} {peer / ours:5.2f}x", flush=True)


if __name__ == "__main__":
    main()

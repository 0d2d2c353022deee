"""The gradient of an embedding lookup against PyTorch's.

python benchmarks/bench_embedding.py [--device cpu] [--tokens 4096] [--hidden 768]

"gradient": a gradient of the whole table on both sides. "added": ours adds to a float32 sum of
gradients, as training does; the peer still makes its gradient only, which is left to be added.
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, forward_backward, medians, row

from megacore.ops.embedding import embedding, embedding_reference
from megacore.ops.linear import add_gradients_to


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=50304)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    print(
        f"table [{args.vocab_size}, {args.hidden}], {args.tokens} tokens, "
        f"{torch.get_num_threads()} threads, forward + backward;"
    )
    print(f"peer: torch.nn.functional.embedding; copy: {bandwidth / 1e9:.1f} GB/s")
    print(HEADER)
    new = partial(torch.randn, device=args.device)
    indices = torch.randint(args.vocab_size, (args.tokens,), device=args.device)
    for dtype in (torch.float32, torch.bfloat16):
        table = new(args.vocab_size, args.hidden).to(dtype).requires_grad_()
        dout = new(args.tokens, args.hidden).to(dtype)
        pair = [
            forward_backward(lambda table, f=f: f(table, indices), [table], dout)
            for f in (embedding, embedding_reference)
        ]
        ours, peer = medians(pair, args.device, args.repeats)
        moved = table.nbytes + 3 * dout.nbytes  # its gradient; rows read and written; dout
        name = str(dtype).removeprefix("torch.")
        print(row(f"{name}, gradient", ours, peer, moved, bandwidth), flush=True)
        summed = torch.nn.Parameter(table.detach())
        add_gradients_to(summed, torch.zeros(table.shape, device=args.device))

        def added(summed: torch.nn.Parameter = summed, dout: torch.Tensor = dout) -> None:
            embedding(summed, indices).backward(dout)

        ours, peer = medians([added, pair[1]], args.device, args.repeats)
        rows = 2 * 4 * dout.numel()  # of the sum, read and written
        print(row(f"{name}, added", ours, peer, 3 * dout.nbytes + rows, bandwidth), flush=True)


if __name__ == "__main__":
    main()

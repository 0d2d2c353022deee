"""The gradient of an embedding lookup against PyTorch's.

python benchmarks/bench_embedding.py [--device cpu] [--tokens 4096] [--hidden 768]
"""

from __future__ import annotations

from functools import partial

import torch
from op_timing import HEADER, arguments, copy_bandwidth, forward_backward, medians, row

from megacore.ops.embedding import embedding, embedding_reference


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
        print(row(name, ours, peer, moved, bandwidth), flush=True)


if __name__ == "__main__":
    main()

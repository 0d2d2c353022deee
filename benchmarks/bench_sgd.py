"""The SGD kernel against torch.optim.SGD(fused=True) followed by a copy to bfloat16.

python benchmarks/bench_sgd.py [--device cpu] [--size 20000000]
"""

from __future__ import annotations

import torch
from op_timing import arguments, medians

from megacore.ops.sgd import sgd_step

BYTES_WITH_COPY = 22  # read param, grad, momentum; write param, momentum and the 16-bit copy


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=20_000_000)
    args = parser.parse_args()

    param = torch.randn(args.size, device=args.device)
    grad = torch.randn(args.size, device=args.device)
    momentum = torch.zeros(args.size, device=args.device)
    copy = torch.empty(args.size, dtype=torch.bfloat16, device=args.device)
    theirs = param.clone().requires_grad_()
    theirs.grad = grad.clone()
    optimizer = torch.optim.SGD([theirs], lr=1e-3, momentum=0.9, weight_decay=0.1, fused=True)

    def ours() -> None:
        sgd_step(param, grad, momentum, model_param=copy, lr=1e-3, momentum=0.9, weight_decay=0.1)

    def torch_step() -> None:
        optimizer.step()
        copy.copy_(theirs.detach())

    own, peer = medians([ours, torch_step], args.device, args.repeats)
    rate = BYTES_WITH_COPY * args.size / own / 1e9
    print(
        f"{args.size} parameters on {args.device}, {torch.get_num_threads()} threads: "
        f"megacore {own * 1e3:.1f} ms ({rate:.1f} GB/s), torch fused + copy {peer * 1e3:.1f} ms, "
        f"ratio {peer / own:.2f}"
    )


if __name__ == "__main__":
    main()

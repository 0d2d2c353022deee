"""Products of linear layers, and weight gradients added into float32, against PyTorch's.

    python benchmarks/bench_gemm.py [--device cpu] [--repeats 5] [--dtypes bfloat16,float32]

Per weight of a GPT with 124M parameters: y = x W^T + b, dx = dy W, and dW summed in float32, for
which the peer multiplies and adds. Rates are 2 M N K operations a second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from op_timing import Call, arguments, medians
from torch import Tensor

from megacore.ops.gemm import is_native
from megacore.ops.linear import add_weight_product, forward_product, input_product

# Inputs and outputs of the matrices of a layer, and of the projection to the vocabulary.
WEIGHTS = [(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50304)]


def peer_sum(total: Tensor, x: Tensor, dy: Tensor) -> None:
    """As a training loop without a fused product sums gradients."""
    total.add_(dy.t() @ x)


def calls(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, total: Tensor
) -> list[tuple[str, Call, Call]]:
    """Name, ours and the peer's, of each product."""
    return [
        ("y", lambda: forward_product(x, weight, bias), lambda: F.linear(x, weight, bias)),
        ("dx", lambda: input_product(dy, weight), lambda: dy @ weight),
        ("dW", lambda: add_weight_product(total, x, dy), lambda: peer_sum(total, x, dy)),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    print(f"{options.tokens} tokens, {torch.get_num_threads()} threads, GFLOP/s")
    print(f"{'dtype':9s} {'weight':14s} {'':3s} {'ours':>8s} {'PyTorch':>8s} {'ratio':>7s}")
    for name in options.dtypes.split(","):
        dtype = getattr(torch, name)
        if not is_native(dtype, options.device):
            print(f"{name}: PyTorch's products are used, but for sums in their own dtype")
        for inputs, outputs in WEIGHTS:
            tokens = options.tokens
            shapes = [(tokens, inputs), (tokens, outputs), (outputs, inputs), (outputs,)]
            tensors = [torch.randn(s, device=options.device).to(dtype) for s in shapes]
            total = torch.zeros(outputs, inputs, device=options.device)
            operations = 2e-9 * options.tokens * inputs * outputs
            for which, ours, peer in calls(*tensors, total):
                taken = medians([ours, peer], options.device, options.repeats)
                rates = [operations / seconds for seconds in taken]
                print(
                    f"{name:9s} {outputs:6d} x {inputs:5d} {which:3s} {rates[0]:8.1f} "
                    f"{rates[1]:8.1f} {rates[0] / rates[1]:6.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Causal attention against PyTorch's scaled_dot_product_attention, forward alone and with backward.

python benchmarks/bench_attention.py [--device cpu] [--batch 1] [--length 1024] [--heads 12]
    [--groups 12] [--width 64]

GFLOP/s counts 4 operations a seen score and element of a head forward, 14 with backward. Peers of
"decode" are explicit products of one query with 4096 keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from op_timing import Call, arguments, forward_backward, medians
from torch import Tensor

from megacore.ops.attention import attention

HEADER = f"{'what':30s} {'ours ms':>9s} {'peer ms':>9s} {'ratio':>6s} {'GFLOP/s':>8s}"


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, causal=True)[0]


def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [x.transpose(1, 2) for x in (q.flatten(2, 3), k, v)]
    out = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=q.shape[3] > 1)
    return out.transpose(1, 2).reshape(q.shape)


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = q.permute(0, 2, 3, 1, 4).flatten(2, 3) * q.shape[-1] ** -0.5
    weights = (rows @ k.permute(0, 2, 3, 1)).float().softmax(-1).to(v.dtype)
    return weights @ v.transpose(1, 2)


def forward(function: Callable[..., Tensor], *inputs: Tensor) -> Call:
    """A call of `function` that keeps nothing for backward."""

    def call() -> None:
        with torch.no_grad():
            function(*inputs)

    return call


def row(name: str, times: list[float], operations: float) -> str:
    rate = operations / times[0] / 1e9
    ratio = times[1] / times[0]
    return f"{name:30s} {times[0] * 1e3:9.2f} {times[1] * 1e3:9.2f} {ratio:5.2f}x {rate:8.0f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    batch, length, groups, width = args.batch, args.length, args.groups, args.width
    shape = (batch, length, groups, args.heads // groups, width)
    seen = batch * args.heads * length * (length + 1) / 2
    print(f"q {list(shape)}, {torch.get_num_threads()} threads")
    print(HEADER)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        q, k, v = (
            torch.randn(size, device=args.device).to(dtype).requires_grad_()
            for size in (shape, (*shape[:3], width), (*shape[:3], width))
        )
        dout = torch.randn_like(q)
        calls = [forward(function, q, k, v) for function in (ours, peer)]
        times = medians(calls, args.device, args.repeats)
        print(row(f"{name} forward", times, 4 * width * seen), flush=True)
        calls = [forward_backward(function, [q, k, v], dout) for function in (ours, peer)]
        times = medians(calls, args.device, args.repeats)
        print(row(f"{name} forward + backward", times, 14 * width * seen), flush=True)
        one = torch.randn(batch, 1, *shape[2:], device=args.device).to(dtype)
        cache = torch.randn(2, batch, 4096, groups, width, device=args.device).to(dtype)
        calls = [forward(function, one, *cache) for function in (ours, explicit)]
        times = medians(calls, args.device, args.repeats)
        print(row(f"{name} decode", times, 4 * width * batch * args.heads * 4096), flush=True)


if __name__ == "__main__":
    main()

"""Optimizer step (norm, clip, AdamW, low-precision copy) against torch.optim in the same run.

    python benchmarks/bench_optimizer_step.py [--hidden 1024] [--layers 4] [--repeats 15]

fp32 peer: `clip_grad_norm_(foreach=True)` and `torch.optim.AdamW(fused=True)`, two groups.
bf16 peer: the same on fp32 copies of the parameters, with the gradients summed in fp32 before and
the parameters copied back after (`torch._foreach_copy_`), as a mixed-precision loop does.
Both sides get equal gradients that are too large, so that both clip; results are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig

VOCABULARY = 8192


def make_model(hidden: int, layers: int, dtype: torch.dtype) -> nn.Module:
    """Parameters of the shapes of a GPT; nothing is computed with them."""
    torch.manual_seed(0)
    model = nn.Module()
    model.embedding = nn.Embedding(VOCABULARY, hidden)
    model.layers = nn.ModuleList(
        nn.ModuleDict(
            {
                "norm": nn.LayerNorm(hidden),
                "qkv": nn.Linear(hidden, 3 * hidden),
                "proj": nn.Linear(hidden, hidden),
                "norm2": nn.LayerNorm(hidden),
                "fc1": nn.Linear(hidden, 4 * hidden),
                "fc2": nn.Linear(4 * hidden, hidden),
            }
        )
        for _ in range(layers)
    )
    return model.to(dtype)


def torch_step(params: list[nn.Parameter], grads: list[Tensor]) -> Callable[[], None]:
    """One step of the peer on parameters of the model's dtype."""
    low = params[0].dtype != torch.float32
    mains = [nn.Parameter(p.detach().float()) for p in params] if low else params
    for main, grad in zip(mains, grads, strict=True):
        main.grad = grad
    optimizer = torch.optim.AdamW(
        [
            {"params": [m for m in mains if m.ndim > 1], "weight_decay": 0.1},
            {"params": [m for m in mains if m.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-3,
        fused=True,
    )

    def step() -> None:
        nn.utils.clip_grad_norm_(mains, 1.0, foreach=True)
        optimizer.step()
        if low:
            with torch.no_grad():
                torch._foreach_copy_(params, mains)

    return step


def medians(*steps: Callable[[], None], repeats: int) -> list[float]:
    """Median seconds of each step, taken in turns so that both see the same machine."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 2):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[2:]) for times in seconds]


def compare(hidden: int, layers: int, dtype: torch.dtype, repeats: int) -> str:
    """One line of results for one dtype."""
    ours, theirs = make_model(hidden, layers, dtype), make_model(hidden, layers, dtype)
    optimizer = build_optimizer(
        ours,
        optimizer=OptimizerConfig(weight_decay=0.1),
        precision=PrecisionConfig(bf16=dtype == torch.bfloat16),
    )
    grads = [torch.randn(p.shape) for p in theirs.parameters()]
    by_name = dict(zip((n for n, _ in ours.named_parameters()), grads, strict=True))
    for name, view in optimizer.named_gradients():
        view.copy_(by_name[name])
    rates = Rates(lr=1e-3, weight_decay=0.1)
    step = torch_step(list(theirs.parameters()), grads)
    mine, peer = medians(lambda: optimizer.step(rates), step, repeats=repeats)
    count = sum(p.numel() for p in ours.parameters())
    # Gradients are clipped once on their side and every time on ours, so a few steps drift apart
    # by roundings; equality proper is tested in tests/optim.
    worst = max(
        float((a.detach().float() - b.detach().float()).abs().max())
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    read_write = 4 + 28 + (2 if dtype == torch.bfloat16 else 0)
    return (
        f"| {str(dtype).removeprefix('torch.')} | {count / 1e6:.1f} M | {mine * 1e3:.1f} | "
        f"{count * read_write / mine / 1e9:.1f} | {peer * 1e3:.1f} | {peer / mine:.2f}x | "
        f"{worst:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| dtype | parameters | ours ms | ours GB/s | torch ms | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        print(compare(arguments.hidden, arguments.layers, dtype, arguments.repeats))


if __name__ == "__main__":
    main()

"""Training steps (forward, backward, clip 1.0, AdamW) on a CPU against Hugging Face transformers.

    python benchmarks/bench_end_to_end.py [--models gpt-mini,llama-mini,gpt-124m]
        [--dtypes bfloat16,float32] [--repeats 3] [--micro-batch N] [--threads 2]

The peer is transformers' model of the same shape with SDPA and every layer under `torch.compile`,
`clip_grad_norm_` and fused `torch.optim.AdamW`, with tcmalloc preloaded where it is installed
(Debian: libgoogle-perftools4). For bfloat16 its parameters, gradients and moments are all bfloat16;
ours are fp32 sums, main parameters and moments, which is more work.

Each side is a process of its own that waits for its turn, so that steps are interleaved and peak
memory is that side's. The bound is the time of the products with weights alone, by PyTorch, of
as many rows. Where a CPU lacks AVX-512 PyTorch multiplies bfloat16 matrices in a plain loop: give
bfloat16 a small `--micro-batch` there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.system_memory import keep_freed_memory

TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4"
LR, WEIGHT_DECAY, CLIP = 1e-4, 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """A model and its micro-batch."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    length: int
    micro_batch: int
    llama: bool = False

    @property
    def weights(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and number of the matrices of a token's way."""
        width = self.hidden // self.heads
        qkv = (self.heads + 2 * self.kv_heads) * width
        up = 2 * self.ffn if self.llama else self.ffn
        layer = [(self.hidden, qkv), (self.hidden, self.hidden)]
        layer += [(self.hidden, up), (self.ffn, self.hidden)]
        return [(i, o, self.layers) for i, o in layer] + [(self.hidden, self.vocabulary, 1)]


SHAPES = {
    "gpt-mini": Shape(6, 384, 6, 6, 1536, 8192, 256, 32),
    "llama-mini": Shape(8, 512, 8, 4, 1536, 32000, 512, 8, llama=True),
    "gpt-124m": Shape(12, 768, 12, 12, 3072, 50304, 1024, 4),
}
Step = Callable[[], float]


def our_step(shape: Shape, dtype: torch.dtype, tokens: torch.Tensor) -> Step:
    """A step as `megacore train` takes it, without its loop."""
    keep_freed_memory()
    sizes = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "ffn_hidden_size": shape.ffn,
        "max_position_embeddings": shape.length,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    if shape.llama:
        sizes |= {
            "group_query_attention": True,
            "num_query_groups": shape.kv_heads,
            "swiglu": True,
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "add_bias_linear": False,
            "untie_embeddings_and_output_weights": True,
        }
    config = ModelConfig(**sizes)
    model = GPTModel(config, padded_vocab_size=shape.vocabulary, dtype=dtype)
    init_weights(model, config, seed=1)
    optimizer = build_optimizer(
        model,
        optimizer=OptimizerConfig(clip_grad=CLIP),
        precision=PrecisionConfig(bf16=dtype == torch.bfloat16),
    )
    labels = tokens.roll(-1, 1)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).mean()
        optimizer.backward(loss)
        optimizer.step(Rates(lr=LR, weight_decay=WEIGHT_DECAY))
        return loss.item()

    return step


def peer_step(shape: Shape, dtype: torch.dtype, tokens: torch.Tensor) -> Step:
    """A step of transformers' model."""
    import transformers

    torch.manual_seed(1)
    if shape.llama:
        config = transformers.LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.length,
            attn_implementation="sdpa",
            use_cache=False,
        )
        model = transformers.LlamaForCausalLM(config).to(dtype)
        layers = model.model.layers
    else:
        config = transformers.GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.length,
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = transformers.GPT2LMHeadModel(config).to(dtype)
        layers = model.transformer.h
    model.train()
    for layer in layers:
        layer.compile()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LR,
        fused=True,
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        return loss.item()

    return step


def matmul_step(shape: Shape, dtype: torch.dtype, tokens: torch.Tensor) -> Step:
    """The products with weights of a step: result, gradient of the input and of the weight."""
    rows = tokens.numel()
    sides: dict[int, torch.Tensor] = {}
    for inputs, outputs, _ in shape.weights:
        for width in (inputs, outputs):
            sides.setdefault(width, torch.randn(rows, width).to(dtype))
    weights = [(torch.randn(o, i).to(dtype), count) for i, o, count in shape.weights]

    def step() -> float:
        for weight, count in weights:
            dy, x = (sides[width] for width in weight.shape)
            for _ in range(count):
                x @ weight.t()
                dy @ weight
                dy.t() @ x
        return 0.0

    return step


SIDES = {"megacore": our_step, "transformers": peer_step, "products": matmul_step}


def work(options: argparse.Namespace) -> None:
    """A side: takes a step for each line of input and answers with what it cost."""
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.models]
    generator = torch.Generator().manual_seed(7)
    size = (options.micro_batch or shape.micro_batch, shape.length)
    tokens = torch.randint(0, shape.vocabulary, size, generator=generator)
    step = SIDES[options.side](shape, getattr(torch, options.dtypes), tokens)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = clock()
        loss = step()
        seconds = clock() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
        cost = {
            "seconds": seconds,
            "loss": loss,
            "faults": after.ru_minflt - before,
            "peak": after.ru_maxrss * 1024,
        }
        print(json.dumps(cost), flush=True)


class Side:
    """The process of a side."""

    def __init__(self, name: str, model: str, dtype: str, options: argparse.Namespace) -> None:
        words = ["--side", name, "--models", model, "--dtypes", dtype]
        words += ["--threads", str(options.threads), "--micro-batch", str(options.micro_batch)]
        words += ["--cpu-time"] if options.cpu_time else []
        environment = dict(os.environ)
        if name == "transformers" and Path(TCMALLOC).exists():
            environment["LD_PRELOAD"] = TCMALLOC
        self.costs: list[dict[str, float]] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def step(self) -> None:
        """Takes a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.costs.append(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def median(self, what: str, warmup: int) -> float:
        """Of the steps behind the warm-up."""
        return statistics.median(cost[what] for cost in self.costs[warmup:])


def compare(model: str, dtype: str, options: argparse.Namespace) -> None:
    """One row of the table."""
    shape = SHAPES[model]
    sides = {name: Side(name, model, dtype, options) for name in SIDES}
    ours, peer, _ = sides.values()
    for _ in range(options.warmup + options.repeats):
        for side in sides.values():
            side.step()
    for side in sides.values():
        side.close()
    warmup = options.warmup
    tokens = (options.micro_batch or shape.micro_batch) * shape.length
    seconds = [side.median("seconds", warmup) for side in sides.values()]
    ratios = [
        theirs["seconds"] / mine["seconds"]
        for mine, theirs in zip(ours.costs[warmup:], peer.costs[warmup:], strict=True)
    ]
    print(
        f"{model:11s} {dtype:9s} {tokens / seconds[0]:9.0f} {tokens / seconds[1]:9.0f} "
        f"{statistics.median(ratios):6.2f}x {seconds[2] / seconds[0]:6.2f} "
        f"{seconds[2] / seconds[1]:6.2f} {ours.costs[-1]['peak'] / 2**20:8.0f} "
        f"{peer.costs[-1]['peak'] / 2**20:8.0f} {ours.median('faults', warmup):8.0f} "
        f"{peer.median('faults', warmup):8.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=0, help="0: that of the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the processor instead of the wall: for one thread on a busy machine",
    )
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    preloaded = "with" if Path(TCMALLOC).exists() else "without"
    print(f"{options.threads} threads, peer {preloaded} tcmalloc, {options.repeats} steps each")
    print(
        f"{'model':11s} {'dtype':9s} {'tokens/s':>9s} {'peer':>9s} {'ratio':>7s} {'bound':>6s} "
        f"{'peer':>6s} {'peak MiB':>8s} {'peer':>8s} {'faults':>8s} {'peer':>8s}"
    )
    for dtype in options.dtypes.split(","):
        for model in options.models.split(","):
            compare(model, dtype, options)


if __name__ == "__main__":
    main()

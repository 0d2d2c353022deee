"""One training step (forward, backward, AdamW) of a small GPT against Hugging Face GPT-2.

    python benchmarks/bench_training_step.py [--dropout 0.1] [--dtype float32]

Same sizes, same optimizer (torch.optim.AdamW, fused), steps of both taken in turn in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights

LAYERS, HIDDEN, HEADS, VOCAB, LENGTH = 6, 384, 6, 8192, 256


def our_step(tokens: torch.Tensor, dtype: torch.dtype, dropout: float) -> Callable[[], float]:
    config = ModelConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        attention_dropout=dropout,
        hidden_dropout=dropout,
    )
    model = GPTModel(config, padded_vocab_size=VOCAB, dtype=dtype)
    init_weights(model, config, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    positions = torch.arange(LENGTH).expand_as(tokens)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, positions, labels=tokens.roll(-1, 1)).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def hugging_face_step(
    tokens: torch.Tensor, dtype: torch.dtype, dropout: float, attention: str
) -> Callable[[], float]:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation=attention,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).to(dtype)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    dtype = getattr(torch, options.dtype)
    tokens = torch.randint(0, VOCAB, (options.batch_size, LENGTH))
    steps = {"megacore": our_step(tokens, dtype, options.dropout)}
    for attention in ("eager", "sdpa"):
        steps[f"transformers {attention}"] = hugging_face_step(
            tokens, dtype, options.dropout, attention
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    ours = statistics.median(times["megacore"])
    print(f"{options.dtype}, dropout {options.dropout}, {tokens.numel()} tokens a step")
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:20} {median:7.3f} s  {tokens.numel() / median:8.0f} tokens/s  "
            f"{median / ours:5.2f} x megacore's time"
        )


if __name__ == "__main__":
    main()

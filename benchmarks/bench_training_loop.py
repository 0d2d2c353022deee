"""Tokens/s of `megacore train` against a plain PyTorch loop over Hugging Face's GPT-2, same run.

    python benchmarks/bench_training_loop.py [--bf16] [--dropout 0.1] [--repeats 5]

Both train a GPT-2 of the same shape on the same number of tokens per step, in turns. The peer is an
ordinary loop: HF `GPT2LMHeadModel` with its SDPA attention, `clip_grad_norm_`, fused
`torch.optim.AdamW`, autocast for bf16, batches made beforehand. megacore's side is the whole
command: data loading, NaN checks, logging and metrics included; set-up is outside both clocks, and
so is the first interval of each (lazy initialisation).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from megacore.training.live_view import Screen
from megacore.training.pretrain import pretrain
from megacore.training.run_config import parse_run

VOCABULARY = 8192
WARMUP_STEPS = 2


def megacore_speed(options: argparse.Namespace, metrics: Path) -> float:
    """Tokens/s of the steps after the first ones, from the run's own metrics file."""
    steps, warmup = options.steps, WARMUP_STEPS
    words = (
        f"--num-layers {options.layers} --hidden-size {options.hidden} "
        f"--num-attention-heads {options.heads} --seq-length {options.sequence} "
        f"--max-position-embeddings {options.sequence} --micro-batch-size {options.batch} "
        f"--global-batch-size {options.batch} --train-iters {steps + warmup} --lr 1e-4 "
        f"--attention-dropout {options.dropout} --hidden-dropout {options.dropout} --mock-data "
        f"--tokenizer-type NullTokenizer --vocab-size {VOCABULARY - 1} --log-interval 1 "
        f"--eval-iters 0 --metrics-jsonl {metrics} --weight-decay 0.1"
    ).split()
    if options.bf16:
        words.append("--bf16")
    metrics.unlink(missing_ok=True)
    run, origins = parse_run(words)
    pretrain(run, origins, screen=Screen(live=False, stream=io.StringIO()))
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = [e["elapsed time per iteration (ms)"] for e in events if e["event"] == "train"]
    return 1000.0 * options.batch * options.sequence * steps / sum(times[warmup:])


def plain_speed(options: argparse.Namespace) -> float:
    """Tokens/s of the peer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=options.sequence,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=options.heads,
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
        attn_implementation="sdpa",
        use_cache=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        fused=True,
    )
    shape = (options.steps + WARMUP_STEPS, options.batch, options.sequence + 1)
    data = torch.randint(0, VOCABULARY, shape, device=device)
    started = 0.0
    for number, tokens in enumerate(data):
        if number == WARMUP_STEPS:
            started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            logits = model(tokens[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return options.batch * options.sequence * options.steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(options.repeats):
            ours.append(megacore_speed(options, Path(directory) / "metrics.jsonl"))
            theirs.append(plain_speed(options))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    kind = "bf16" if options.bf16 else "fp32"
    print(
        f"{kind}, {options.layers} layers of {options.hidden}, {options.batch} x "
        f"{options.sequence} tokens, dropout {options.dropout}, {torch.get_num_threads()} threads"
    )
    print(f"megacore train      {statistics.median(ours):10.0f} tokens/s")
    print(f"plain PyTorch loop  {statistics.median(theirs):10.0f} tokens/s (Hugging Face GPT-2)")
    print(
        f"ratio               {statistics.median(ratios):10.2f} median of {len(ratios)} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()

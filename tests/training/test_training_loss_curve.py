"""Fifty steps of `megacore train` against a plain PyTorch loop over the same GPT-2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_runs import arguments, metrics, train
from transformers import GPT2Config, GPT2LMHeadModel

from megacore.checkpoint import save_checkpoint
from megacore.data.tokenizers import build_tokenizer
from megacore.models.resolve import transformer_spec
from megacore.optim import MicrobatchCalculator
from megacore.testing.hf_weights import from_gpt2
from megacore.training.batches import build_batches, samples_wanted
from megacore.training.families import GPTFamily
from megacore.training.run_config import RunConfig, parse_run
from megacore.training.run_state import RunState

STEPS = 50
ROWS = 128
WARMUP, LR, MIN_LR, DECAY = 5, 3e-3, 3e-4, 0.1
FLAGS = (
    f"--train-iters {STEPS} --hidden-dropout 0 --attention-dropout 0 --global-batch-size 6 "
    f"--lr {LR} --min-lr {MIN_LR} --lr-decay-style cosine --lr-warmup-iters {WARMUP} "
    f"--weight-decay {DECAY} --adam-beta2 0.95 --clip-grad 0.5"
)


def hugging_face_model() -> GPT2LMHeadModel:
    torch.manual_seed(11)
    config = GPT2Config(
        vocab_size=ROWS,
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


def batches(run: RunConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, labels and mask of every optimizer step, in the order of the run."""
    source = build_batches(
        run,
        build_tokenizer(run.tokenizer),
        family=GPTFamily(),
        state=RunState(),
        wanted=samples_wanted(run, train_iters=STEPS, batch_size=6),
        vocab_rows=ROWS,
    ).train
    assert source is not None
    count = MicrobatchCalculator(run.batch).at(0).num_microbatches
    steps = []
    for _ in range(STEPS):
        parts = [next(source) for _ in range(count)]
        steps.append(
            tuple(
                torch.cat([getattr(p, k) for p in parts]) for k in ("tokens", "labels", "loss_mask")
            )
        )
    return steps


def rate(step: int) -> float:
    """Learning rate of the step that `step` others come before."""
    if step <= WARMUP:
        return LR * step / WARMUP
    share = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * share)) * (LR - MIN_LR)


def plain_loop(
    model: GPT2LMHeadModel, steps: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[list[float], list[float]]:
    """The losses and gradient norms of an ordinary loop with torch's AdamW."""
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for number, (tokens, labels, mask) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        optimizer.zero_grad()
        logits = model(tokens).logits
        per_token = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        # Every micro-batch of this data has as many tokens, so one mean is the mean of means.
        loss = (per_token * mask.flatten().to(per_token.dtype)).sum() / mask.sum()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def write_weights(model: GPT2LMHeadModel, run: RunConfig, directory: Path) -> None:
    named = {name: p.detach() for name, p in model.named_parameters()}
    weights = from_gpt2(named, transformer_spec(run.model))
    save_checkpoint(directory, 1, tensors={"model": weights}, values={"args": {}})


@pytest.mark.parametrize("variant", ["", "--calculate-per-token-loss"])
def test_fifty_steps_equal_a_plain_loop(tmp_path: Path, variant: str) -> None:
    run, _ = parse_run(arguments(FLAGS))
    write_weights(hugging_face_model(), run, tmp_path / "start")
    path = tmp_path / "m.jsonl"
    train(f"{FLAGS} {variant} --load {tmp_path / 'start'} --finetune --metrics-jsonl {path}")
    events = metrics(path, "train")
    steps = batches(run)
    single = plain_loop(hugging_face_model(), steps)
    double = plain_loop(hugging_face_model().double(), steps)
    assert len(events) == STEPS
    assert double[0][-1] < 0.8 * double[0][0]
    for key, mine32, mine64 in zip(("lm loss", "grad norm"), single, double, strict=True):
        # Rounding errors grow along the curve: up to each step, twice the most that PyTorch's own
        # fp32 loop has strayed from fp64, and no less than a few roundings of the value itself.
        strayed = 0.0
        for number, event in enumerate(events):
            strayed = max(strayed, abs(mine32[number] - mine64[number]))
            bound = 2 * strayed + 8 * 2**-24 * abs(mine64[number])
            error = abs(event[key] - mine64[number])
            assert error <= bound, (key, number, error, bound)

"""Small training runs for tests: in this process, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint import Checkpoint, find_checkpoint
from megacore.training.cli import checkpoint_arguments
from megacore.training.live_view import Screen
from megacore.training.log_line import IterationRecord, parse_iteration
from megacore.training.pretrain import pretrain
from megacore.training.run_config import parse_run

SMALL: dict[str, object] = {
    "--num-layers": 2,
    "--hidden-size": 32,
    "--num-attention-heads": 4,
    "--seq-length": 24,
    "--max-position-embeddings": 24,
    "--micro-batch-size": 2,
    "--global-batch-size": 4,
    "--train-iters": 8,
    "--lr": 1e-2,
    "--mock-data": "",
    "--tokenizer-type": "NullTokenizer",
    "--vocab-size": 96,
    "--num-workers": 0,
    "--log-interval": 1,
    "--eval-interval": 1000,
    "--eval-iters": 0,
    "--peak-tflops": 1.0,
}


def arguments(extra: str = "", *, without: str = "") -> list[str]:
    """The words of a small run.

    Args:
        extra: Words to add; they win over those of the small run.
        without: Flags of the small run to leave out.
    """
    left = {name: value for name, value in SMALL.items() if name not in without.split()}
    words = [word for name, value in left.items() for word in (name, str(value)) if word]
    return words + extra.split()


def train(extra: str = "", *, without: str = "") -> str:
    """Train in this process; what was printed."""
    screen = io.StringIO()
    run, origins = parse_run(
        arguments(extra, without=without), read_checkpoint=checkpoint_arguments
    )
    assert pretrain(run, origins, screen=Screen(live=False, stream=screen)) == 0
    return screen.getvalue()


def iterations(printed: str) -> list[IterationRecord]:
    """The log lines in the output of a run."""
    return [record for line in printed.splitlines() if (record := parse_iteration(line))]


def losses(printed: str) -> list[float]:
    """The training losses in the output of a run; a skipped iteration has none."""
    return [r.losses["lm loss"] for r in iterations(printed) if "lm loss" in r.losses]


def metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """Events of one kind in a metrics file."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [values for values in events if values["event"] == event]


def process(
    extra: str = "", *, without: str = "", environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `megacore train` as a process of its own, both outputs in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "megacore", "train", *arguments(extra, without=without)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
    )


def stored(directory: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a directory."""
    found = find_checkpoint(directory, step=step)
    assert found is not None
    return Checkpoint(found)


def assert_same_bits(one: Checkpoint, other: Checkpoint) -> None:
    """Both hold the same iteration, counters and tensors, bit for bit."""
    assert one.iteration == other.iteration
    assert one.groups == other.groups
    for group in one.groups:
        left, right = one.tensors(group), other.tensors(group)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert tensor.dtype == right[name].dtype, name
            # As bytes, so that -0.0 is not 0.0 and a NaN equals itself.
            same = tensor.flatten().view(torch.uint8).equal(right[name].flatten().view(torch.uint8))
            assert same, f"{group}: {name}"
    for key in ("counters", "scheduler", "optimizer", "rng"):
        assert one.values.get(key) == other.values.get(key), key

"""torchrun, as a user starts it: the loss of one process, one stream of lines, one exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_worlds import SMALL, train_here

from megacore.training.log_line import parse_iteration

SCRIPT = Path(__file__).parents[2] / "pretrain_gpt.py"


def launch(flags: str, size: int = 2) -> subprocess.CompletedProcess[str]:
    """Run pretrain_gpt.py under torchrun until it ends."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={size}", str(SCRIPT), *f"{SMALL} {flags}".split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )


def losses(printed: str) -> list[float]:
    return [r.losses["lm loss"] for line in printed.splitlines() if (r := parse_iteration(line))]


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_two_processes_give_the_loss_of_one(axis: str) -> None:
    done = launch(f"--{axis}-model-parallel-size 2")
    assert done.returncode == 0, done.stderr
    wanted = losses(train_here(None, "").printed)
    assert len(wanted) == 5
    # Printed with seven digits; sums of float32 in another order.
    assert losses(done.stdout) == pytest.approx(wanted, rel=5e-6)
    assert done.stdout.count("[before the start of training step]") == 1


def test_a_nan_is_said_once_and_ends_torchrun() -> None:
    done = launch("--lr 1e30 --lr-warmup-iters 0 --clip-grad 0")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: iteration 2: the loss")]) == 1

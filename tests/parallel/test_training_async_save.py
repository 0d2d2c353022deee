"""Several processes that save in the background, and runs of them that are killed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_worlds import SMALL, Trained, full_weights, train_here
from worker_pool import WorkerError, WorkerPools

from megacore.checkpoint import load_checkpoint
from megacore.checkpoint.layout import complete_iterations
from megacore.checkpoint.verify import verify
from megacore.parallel.groups import Group

SCRIPT = Path(__file__).parents[2] / "pretrain_gpt.py"
SHARDED = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"


def test_processes_that_save_in_the_background_write_what_they_write_themselves(
    world: WorkerPools, tmp_path: Path
) -> None:
    direct, background = tmp_path / "direct", tmp_path / "background"
    flags = f"{SHARDED} --save-interval 2 --non-persistent-save-interval 1"
    world(2).run(train_here, f"{flags} --save {direct}")
    runs: list[Trained] = world(2).run(train_here, f"{flags} --save {background} --async-save")
    assert runs[0].printed.count("scheduled an async checkpoint save") == 6
    assert runs[0].printed.count("successfully saved checkpoint") == 6
    assert complete_iterations(background) == complete_iterations(direct) == [2, 4, 5]
    assert complete_iterations(background / "non_persistent") == [5]
    one, other = load_checkpoint(direct), load_checkpoint(background)
    for group in ("model", "optimizer"):
        expected, found = one.tensors(group), other.tensors(group)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    resumed = world(2).run(train_here, f"{SHARDED} --load {background} --ckpt-step 2")
    for name, weight in full_weights(runs).items():
        assert torch.equal(full_weights(resumed)[name], weight), name


def fail_on_one(group: Group, directory: str) -> None:
    """Trains, and kills the background process of rank 1 as soon as there is one."""
    from megacore.checkpoint.background import BackgroundWriter

    submit = BackgroundWriter.submit

    def submit_and_kill(self: BackgroundWriter, *args: object, **settings: object) -> None:
        if group.rank == 1:
            os.kill(self.pid, signal.SIGKILL)
        submit(self, *args, **settings)  # type: ignore[arg-type]

    BackgroundWriter.submit = submit_and_kill  # type: ignore[method-assign, assignment]
    try:
        train_here(group, f"--save {directory} --save-interval 1 --async-save")
    finally:
        BackgroundWriter.submit = submit  # type: ignore[method-assign]


def test_all_processes_learn_that_one_cannot_save(world: WorkerPools, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="rank 1: the process that writes checkpoints") as caught:
        world(2).run(fail_on_one, str(tmp_path))
    assert caught.value.kind == "BackgroundSaveError"
    assert complete_iterations(tmp_path) == []


def start(flags: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = SMALL.replace("--train-iters 5", "").replace("--eval-interval 3", "").split()
    line = [*words, *f"--eval-interval 1000 --train-iters 100 {flags}".split()]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node=2", str(SCRIPT), *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def workers_of(launcher: int) -> list[int]:
    """Processes that torchrun started."""
    path = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(word) for word in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "--async-save"])
def test_killing_any_process_of_a_job_loses_nothing_that_was_saved(
    tmp_path: Path, mode: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chance = random.Random(len(mode))
    flags = f"{SHARDED} {mode} --save-interval 1 --save-retain-last 3"
    straight = start(f"{flags} --save {whole}")
    printed, _ = straight.communicate(timeout=280)
    assert straight.returncode == 0, printed
    for target in (10, 30, 60):
        run = start(f"{flags} --save {parts} --load {parts}")
        assert run.stdout is not None
        for line in run.stdout:
            found = re.search(r"successfully saved checkpoint from iteration +(\d+)", line)
            if found and int(found[1]) >= target:
                break
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(chance.choice(workers_of(run.pid)), signal.SIGKILL)
        run.communicate(timeout=120)
        assert run.returncode != 0
        kept = load_checkpoint(parts)
        assert kept.iteration >= target
        assert verify(kept.path).damages == ()
    last = start(f"{flags} --save {parts} --load {parts}")
    printed, _ = last.communicate(timeout=280)
    assert last.returncode == 0, printed
    one, other = load_checkpoint(whole), load_checkpoint(parts)
    assert one.iteration == other.iteration == 100
    for group in ("model", "optimizer"):
        expected, found_now = one.tensors(group), other.tensors(group)
        assert all(torch.equal(found_now[name], t) for name, t in expected.items())
    assert not list(parts.glob(".writing-*"))

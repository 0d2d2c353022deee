"""A run that is told to stop, or is killed, at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training_runs import assert_same_bits, process, stored

from megacore.training.log_line import parse_iteration

# Saving every iteration makes it likely that a kill hits a save.
LONG = "--train-iters 120 --bf16 --save-interval 1 --save-retain-last 2 --log-interval 1"
ANSWER_SECONDS = 60


def wait_for_iteration(run: subprocess.Popen[str], iteration: int) -> list[str]:
    """Reads the output up to the log line of an iteration; what was read."""
    lines: list[str] = []
    assert run.stdout is not None
    for line in run.stdout:
        lines.append(line)
        if f"] iteration {iteration:8d}/" in line:
            return lines
    raise AssertionError(f"the run ended before iteration {iteration}:\n{''.join(lines)}")


def logged(lines: list[str]) -> list[int]:
    """The iterations with a log line."""
    return [record.iteration for line in lines if (record := parse_iteration(line))]


def finish(run: subprocess.Popen[str]) -> str:
    text, _ = run.communicate(timeout=ANSWER_SECONDS)
    return text


def test_sigterm_with_the_handler_saves_and_leaves_with_0(tmp_path: Path) -> None:
    flags = "--train-iters 100000 --save-interval 100000 --exit-signal-handler"
    run = process(f"{flags} --save {tmp_path}")
    lines = wait_for_iteration(run, 5)
    run.send_signal(signal.SIGTERM)
    rest = finish(run)
    assert run.returncode == 0, rest
    assert "[exiting program after receiving SIGTERM.] datetime: " in rest
    last = logged([*lines, *rest.splitlines()])[-1]
    assert stored(tmp_path).iteration == last < 100000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_without_the_handler_the_exit_code_tells_the_signal(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = process(f"--train-iters 100000 --save-interval 100000 --save {tmp_path}")
    wait_for_iteration(run, 3)
    run.send_signal(number)
    rest = finish(run)
    assert run.returncode in (code, -number), rest
    assert "Traceback" not in rest
    assert list(tmp_path.glob("iter_*")) == []
    assert list(tmp_path.glob(".writing-*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_again_and_again_the_run_ends_with_the_same_bits(
    tmp_path: Path, number: signal.Signals
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = process(f"{LONG} --save {whole}")
    rng = random.Random(number)
    starts: list[int] = []
    for target in (10, 40, 80):
        run = process(f"{LONG} --save {parts} --load {parts}")
        lines = wait_for_iteration(run, target)
        starts.append(logged(lines)[0])
        # Somewhere inside an iteration (6 ms) or the save that follows it (10 ms).
        time.sleep(rng.uniform(0.0, 0.04))
        run.send_signal(number)
        finish(run)
        assert run.returncode in (143, -number)
        # Whatever the moment: what the tracker points at is complete.
        assert stored(parts).iteration >= target - 1
    last = process(f"{LONG} --save {parts} --load {parts}")
    assert "successfully loaded checkpoint" in finish(last)
    assert last.returncode == 0
    finish(straight)
    assert straight.returncode == 0
    assert starts[0] == 1
    assert starts[1] > 9
    assert starts[2] > 39
    assert_same_bits(stored(whole), stored(parts))
    assert list(parts.glob(".writing-*")) == []


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path) -> None:
    first = process(f"--train-iters 100000 --save-interval 100000 --save {tmp_path}")
    wait_for_iteration(first, 1)
    second = process(f"--save-interval 4 --save {tmp_path} --load {tmp_path}")
    text = finish(second)
    assert second.returncode == 1, text
    assert "another process is writing checkpoints there" in text
    first.kill()
    finish(first)


def test_exit_codes_of_failures(tmp_path: Path) -> None:
    diverges = "--lr 1e30 --clip-grad 0 --hidden-dropout 0 --attention-dropout 0"
    runs = {
        1: process(f"{diverges} --no-live-view"),
        2: process("--lr-warmup-iters 99"),
        0: process("--train-iters 2"),
    }
    texts = {code: finish(run) for code, run in runs.items()}
    assert {code: run.returncode for code, run in runs.items()} == {0: 0, 1: 1, 2: 2}
    assert "iteration 2: the loss is" in texts[1]
    assert "MC0305" in texts[2]
    assert "Traceback" not in "".join(texts.values())

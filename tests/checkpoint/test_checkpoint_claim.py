"""Two writers and one directory; a run that would bury a newer one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import megacore
from megacore.checkpoint import SaveDirectory, load_checkpoint, save_checkpoint
from megacore.errors import CheckpointError

HOLD = """
import sys, time
from megacore.checkpoint import SaveDirectory
with SaveDirectory(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""
HOLD_WITH_CHILD = """
import os, sys, time
from megacore.checkpoint import SaveDirectory
with SaveDirectory(sys.argv[1]):
    if os.fork() == 0:
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(120)
"""


@contextmanager
def holder(directory: Path, program: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.defpath, "PYTHONPATH": str(Path(megacore.__file__).parent.parent)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        # The group: a forked child may outlive the process itself.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def put(directory: Path, iteration: int, **more: object) -> Path:
    return save_checkpoint(
        directory,
        iteration,
        tensors={"model": {"w": torch.full((3,), float(iteration))}},
        values={},
        **more,
    )


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(CheckpointError, match=f"process {process.pid} on .*another --save"):
            SaveDirectory(tmp_path, wait_s=0.2)
        assert not list(tmp_path.glob("iter_*"))


def test_a_killed_holder_lets_go_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        put(tmp_path, 1)
    assert load_checkpoint(tmp_path).iteration == 1


def test_a_forked_child_does_not_inherit_the_claim(tmp_path: Path) -> None:
    """As a data-loading worker that outlives its killed parent for a moment."""
    with holder(tmp_path, HOLD_WITH_CHILD) as process:
        process.kill()
        process.wait()
        with SaveDirectory(tmp_path, wait_s=0.0):
            pass


def test_a_process_shares_its_own_claim(tmp_path: Path) -> None:
    with SaveDirectory(tmp_path) as outer:
        put(tmp_path, 1)
        with SaveDirectory(tmp_path):
            pass
        # The outer claim is still a claim: another process must not get in.
        probe = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys\nfrom megacore.checkpoint import SaveDirectory\n"
                "SaveDirectory(sys.argv[1], wait_s=0.0)",
                str(tmp_path),
            ],
            env={"PATH": os.defpath, "PYTHONPATH": str(Path(megacore.__file__).parent.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert probe.returncode == 1
        assert f"process {os.getpid()}" in probe.stderr
        outer.save(2, tensors={}, values={})
    outer.close()
    with holder(tmp_path):
        pass


def test_litter_of_dead_writers_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, 1)
    for name in (".writing-iter_0000002-0a1b", ".removing-iter_0000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").write_text("kept")
    (tmp_path / ".replaced-iter_0000007").mkdir()
    with SaveDirectory(tmp_path):
        names = {entry.name for entry in tmp_path.iterdir()} - {".megacore.lock"}
    # An incomplete directory that was moved aside is nothing we would have made: it stays.
    assert names == {
        "iter_0000001",
        "latest_checkpointed_iteration.txt",
        "notes",
        ".hidden",
        ".replaced-iter_0000007",
    }


def test_a_displaced_iteration_is_found_and_gets_its_name_back(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    aside = path.with_name(".replaced-iter_0000001")
    path.rename(aside)
    with SaveDirectory(tmp_path) as target:
        assert load_checkpoint(tmp_path).path == aside
        target.save(2, tensors={}, values={})
    assert load_checkpoint(tmp_path, step=1).path == path


@pytest.mark.parametrize("start", [0, 299])
def test_a_run_that_starts_earlier_is_refused(tmp_path: Path, start: int) -> None:
    put(tmp_path, 300)
    with SaveDirectory(tmp_path) as target:
        with pytest.raises(CheckpointError) as caught:
            target.refuse_newer(start)
        target.refuse_newer(300)
        target.refuse_newer(301)
    for part in ("iteration 300", f"iteration {start}", "--load", "--overwrite-newer-checkpoints"):
        assert part in str(caught.value)


def test_an_untracked_first_save_counts_as_newer_too(tmp_path: Path) -> None:
    put(tmp_path, 300)
    (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    with SaveDirectory(tmp_path) as target, pytest.raises(CheckpointError, match="iteration 300"):
        target.refuse_newer(0)


def test_an_iteration_after_the_tracked_one_may_be_written_again(tmp_path: Path) -> None:
    """What a kill between publishing and the tracker leaves must not stop the next run."""
    put(tmp_path, 100)
    put(tmp_path, 200)
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"100")
    with SaveDirectory(tmp_path) as target:
        target.refuse_newer(100)
        target.save(150, tensors={}, values={"branch": 2})
        target.save(200, tensors={}, values={"branch": 2})
    assert load_checkpoint(tmp_path).values == {"branch": 2}


def test_saving_over_a_newer_iteration_needs_the_word(tmp_path: Path) -> None:
    put(tmp_path, 300)
    with pytest.raises(CheckpointError, match="holds iteration 300; iteration 200"):
        put(tmp_path, 200)
    assert load_checkpoint(tmp_path).iteration == 300
    put(tmp_path, 200, overwrite_newer=True, retain_last=1)
    assert load_checkpoint(tmp_path).iteration == 200
    assert load_checkpoint(tmp_path, step=300).iteration == 300
    put(tmp_path, 210)


@pytest.mark.parametrize("content", ["other/file", "file"])
def test_what_is_not_a_checkpoint_is_not_replaced(tmp_path: Path, content: str) -> None:
    file = tmp_path / "iter_0000005" / content
    file.parent.mkdir(parents=True)
    file.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="will not be overwritten"):
        put(tmp_path, 5)
    assert file.read_bytes() == b"precious"

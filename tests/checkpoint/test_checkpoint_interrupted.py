"""Saving that is interrupted: killed, out of space, or refused by the file system."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import make_tensors, make_values, read_seed
from kill_driver import CALLS, SCENARIOS, leftovers

import megacore
from megacore.checkpoint import save_checkpoint
from megacore.errors import CheckpointError

SIZE = 61


def save(directory: Path, iteration: int, seed: int, *, size: int = SIZE, **more: Any) -> None:
    save_checkpoint(
        directory,
        iteration,
        tensors=make_tensors(seed, size=size),
        values=make_values(seed),
        **more,
    )


def drive(*args: object) -> dict[str, int]:
    driver = Path(__file__).with_name("kill_driver.py")
    environment = {
        "PATH": os.defpath,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(megacore.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, driver, *(str(arg) for arg in args)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_call(tmp_path: Path, scenario: str) -> None:
    outcome = drive("each", tmp_path / "d", scenario)
    assert outcome["kills"] >= 60
    assert outcome["old"] > 0
    assert outcome["new"] > 0


def test_killed_at_random_instants(tmp_path: Path) -> None:
    outcome = drive("random", tmp_path, 60, 20)
    assert outcome["kills"] == 60
    assert outcome["old"] > 0
    assert outcome["new"] > 0


class Recorder:
    """Notes which paths the calls of saving touch, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recording(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if name == "open":
                self._paths[result] = str(args[0])
            what = self._paths.get(args[0], "?") if isinstance(args[0], int) else str(args[0])
            kind = "create" if name == "open" and args[1] & os.O_CREAT else name
            self.events.append((kind, what))
            return result

        return recording

    def index(self, kind: str, ending: str) -> int:
        return next(
            i for i, (k, path) in enumerate(self.events) if k == kind and path.endswith(ending)
        )


def test_data_is_on_the_device_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut can undo: a rename may become durable before what it renames."""
    save(tmp_path, 4, 4)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        save(tmp_path, 5, 5)
    events = recorder.events
    scratch = next(path for kind, path in events if kind == "mkdir")
    published = events.index(("rename", scratch))
    created = [path for kind, path in events if kind == "create" and path.startswith(scratch)]
    assert len(created) == 5
    assert created[-1].endswith("checksums.json")
    for path in created:
        last_write = max(i for i, event in enumerate(events) if event == ("write", path))
        assert last_write < events.index(("fsync", path)) < published
    names_durable = events.index(("fsync", scratch))
    assert events.index(("create", created[-1])) < names_durable < published
    tracker_new = recorder.index("create", ".new")
    tracker_moved = recorder.index("replace", ".new")
    tracker_flushed = events.index(("fsync", events[tracker_new][1]))
    directory_flushed = [i for i, event in enumerate(events) if event == ("fsync", str(tmp_path))]
    assert any(published < i < tracker_moved for i in directory_flushed)
    assert published < tracker_new < tracker_flushed < tracker_moved < max(directory_flushed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_of_any_call_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, code: int
) -> None:
    """The file system refuses the k-th call, for every k; the process goes on."""
    earlier, iteration, retain = SCENARIOS[scenario]
    old = max(earlier) if earlier else None
    refused = moment = 0
    while True:
        place = tmp_path / str(moment)
        for number in earlier:
            save(place, number, number, size=5)
        place.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            left = [moment]
            for name in ("open", "write", "fsync", "mkdir", "rename", "replace"):
                patch.setattr(os, name, failing(getattr(os, name), left, code))
            try:
                save(place, iteration, 77, size=5, retain_last=retain)
                failure = None
            except CheckpointError as error:
                failure = str(error)
        found = read_seed(place, size=5)
        if left[0] > 0:
            assert failure is None
            assert found == 77
            break
        refused += 1
        if failure is None:
            # Only clearing away what the new state supersedes may fail silently.
            assert found == 77
        else:
            assert os.strerror(code) in failure
            assert str(place) in failure
            assert found in (old, 77)
            assert not list(place.glob(".writing-*"))
        save(place, iteration + 1, 99, size=5)
        assert read_seed(place, size=5) == 99
        assert not leftovers(place)
        moment += 1
    assert refused >= 20


def failing(call: Callable[..., Any], left: list[int], code: int) -> Callable[..., Any]:
    def refusing(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(code, os.strerror(code), str(args[0]))
        return call(*args, **kwargs)

    return refusing


@pytest.mark.parametrize("limit", [0, 1, 4096, 65536])
def test_a_file_size_limit_leaves_the_old_state(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 4, 4, size=9000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, 5, 5, size=9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_seed(tmp_path, size=9000) == 4
    assert not leftovers(tmp_path)
    save(tmp_path, 5, 5, size=9000)
    assert read_seed(tmp_path, size=9000) == 5


def test_a_full_file_system_leaves_the_old_state(tmp_path: Path) -> None:
    """A real file system of 2 MiB, in a name space of its own."""
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(megacore.__file__).parent.parent)!r}]
from pathlib import Path
import megacore.checkpoint.save as saving
from checkpoint_cases import make_tensors, make_values, read_seed
from megacore.errors import CheckpointError
place = Path({str(tmp_path)!r})
def save(iteration, size):
    saving.save_checkpoint(place, iteration, tensors=make_tensors(iteration, size=size),
                           values=make_values(iteration))
save(1, 5)
try:
    save(2, 40000)
except CheckpointError as error:
    assert "not enough space" in str(error) and "nothing was written" in str(error), error
else:
    raise AssertionError("a checkpoint larger than the file system was saved")
saving.free_bytes = lambda directory: 1 << 40  # as when others fill it while we write
try:
    save(2, 40000)
except CheckpointError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("a checkpoint larger than the file system was saved")
assert read_seed(place, size=5) == 1
assert not list(place.glob(".writing-*"))
save(2, 5)
assert read_seed(place, size=5) == 2
"""
    mount = f'mount -t tmpfs -o size=2m tmpfs {tmp_path} || exit 77; exec {sys.executable} -c "$1"'
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", script],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if (
        done.returncode == 77
        or "unshare failed" in done.stderr
        or done.stderr.startswith("unshare:")
    ):
        pytest.skip(f"no user name space here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_space_is_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megacore.checkpoint.save.free_bytes", lambda directory: 3 << 20)
    with pytest.raises(CheckpointError, match=r"takes \d\.\d\d MiB, 3\.00 MiB are free") as caught:
        save(tmp_path, 1, 1, size=40_000)
    assert str(tmp_path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [".megacore.lock"]
    save(tmp_path, 1, 1)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/below: cannot be used .*: Not a directory"):
        save(tmp_path / "file" / "below", 1, 1)


def test_interruption_by_an_exception_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the tensors are written."""
    save(tmp_path, 4, 4)

    def interrupted(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("megacore.checkpoint.container.write_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 5, 5)
    assert not leftovers(tmp_path)
    assert read_seed(tmp_path) == 4

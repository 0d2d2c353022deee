"""Short campaigns of kills and of damage; tools/checkpoint_campaign.py runs long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import megacore
from megacore.checkpoint.load import Checkpoint
from megacore.errors import CheckpointError
from megacore.testing.checkpoint_states import differences, stored_seed
from megacore.testing.corrupt_campaign import NEW, Corruptor, corrupt_campaign, save_together

ROOT = Path(__file__).resolve().parents[2]


def campaign(*words: object) -> str:
    """The tool in a process of its own: it forks, which a process of many tests should not."""
    environment = {
        "PATH": os.defpath,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(megacore.__file__).parent.parent),
    }
    tool = ROOT / "tools" / "checkpoint_campaign.py"
    done = subprocess.run(
        [sys.executable, tool, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_processes_that_save_together_leave_the_old_or_the_new_state(
    tmp_path: Path,
) -> None:
    printed = campaign("kill", "--count", 30, "--seed", 3, "--directory", tmp_path)
    assert "30  in" in printed
    for kind in ("async", "sync", ": old", ": new"):
        assert kind in printed
    assert not list(tmp_path.iterdir())


def test_every_kind_of_damage_is_found_and_named(tmp_path: Path) -> None:
    found = corrupt_campaign(tmp_path / "c", count=120, seed=5)
    assert found.total() == 120
    assert len(found) == 12
    assert set(found.values()) == {10}


def test_the_campaign_itself_notices(tmp_path: Path) -> None:
    """What it relies on: a state is recognised, and every kind of damage changes something."""
    save_together(tmp_path / "a", [1, 2])
    assert stored_seed(tmp_path / "a") == 2
    checkpoint = Checkpoint(tmp_path / "a" / "iter_0000002")
    assert differences(checkpoint, 2) == []
    assert len(differences(checkpoint, 1)) > 5
    corruptor = Corruptor(tmp_path / "b", seed=1)
    for kind in corruptor.kinds:
        before = {p.name: p.read_bytes() for p in corruptor.path.iterdir()}
        done = corruptor.corrupt(kind)
        after = {p.name: p.read_bytes() for p in corruptor.path.iterdir()}
        if done is not None:
            changed = {n for n in before if after.get(n) != before[n]}
            assert changed == set(done.files)
            corruptor.repair(done)
        assert {p.name: p.read_bytes() for p in corruptor.path.iterdir()} == before


def test_an_iteration_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    save_together(tmp_path, [1, NEW])
    renamed = tmp_path / "iter_0000009"
    (tmp_path / "iter_0000002").rename(renamed)
    with pytest.raises(CheckpointError, match=r"those of iteration 2.*that of iteration 9"):
        Checkpoint(renamed)
    assert json.loads((renamed / "checksums.json").read_bytes())["iteration"] == 2

"""Which checkpoints are kept, for every combination of the two rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacore.checkpoint import save_checkpoint
from megacore.checkpoint.layout import complete_iterations
from megacore.checkpoint.retention import (
    Retention,
    remove_before_saving,
    remove_superseded,
)

ITERATIONS = [5, 10, 15, 20, 25]


@pytest.mark.parametrize(
    ("last", "interval", "kept"),
    [
        (None, None, [5, 10, 15, 20, 25]),
        (1, None, [25]),
        (2, None, [20, 25]),
        (99, None, [5, 10, 15, 20, 25]),
        (None, 10, [10, 20, 25]),
        (None, 100, [25]),
        (None, 5, [5, 10, 15, 20, 25]),
        (2, 10, [10, 20, 25]),
        (3, 20, [15, 20, 25]),
        (1, 15, [15, 25]),
    ],
)
def test_what_is_kept(
    tmp_path: Path, last: int | None, interval: int | None, kept: list[int]
) -> None:
    retention = Retention(last, interval)
    gone = retention.superseded(list(reversed(ITERATIONS)))
    assert [i for i in ITERATIONS if i not in gone] == kept
    assert retention.superseded([]) == []
    for iteration in ITERATIONS:
        save(tmp_path, iteration)
    remove_superseded(tmp_path, 25, retention)
    assert complete_iterations(tmp_path) == kept


def save(directory: Path, iteration: int) -> None:
    save_checkpoint(directory, iteration, tensors={"model": {"w": torch.zeros(1)}}, values={})


def test_later_iterations_and_other_directories_are_left_alone(tmp_path: Path) -> None:
    for iteration in ITERATIONS:
        save(tmp_path, iteration)
    (tmp_path / "iter_0000001").mkdir()
    (tmp_path / "iter_0000001" / "mine.txt").write_text("kept")
    remove_superseded(tmp_path, 15, Retention(last=1))
    assert complete_iterations(tmp_path) == [15, 20, 25]
    assert (tmp_path / "iter_0000001" / "mine.txt").read_text() == "kept"


def test_room_is_made_without_touching_what_a_restart_needs(tmp_path: Path) -> None:
    for iteration in ITERATIONS:
        save(tmp_path, iteration)
    # Of three that stay after the next save two stay now; the newest always does.
    assert remove_before_saving(tmp_path, 30, Retention(last=3)) == [5, 10, 15]
    assert complete_iterations(tmp_path) == [20, 25]
    assert remove_before_saving(tmp_path, 30, Retention(last=1)) == [20]
    assert complete_iterations(tmp_path) == [25]
    (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    assert remove_before_saving(tmp_path, 30, Retention(last=1)) == []
    assert complete_iterations(tmp_path) == [25]


def test_the_tracked_one_stays_although_it_is_not_the_newest(tmp_path: Path) -> None:
    for iteration in ITERATIONS:
        save(tmp_path, iteration)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    assert remove_before_saving(tmp_path, 30, Retention(last=1)) == [5, 15, 20]
    assert complete_iterations(tmp_path) == [10, 25]

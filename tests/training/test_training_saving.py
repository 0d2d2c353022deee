"""When a run saves, where, and what a restart takes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from training_runs import assert_same_bits, losses, stored, train

from megacore.checkpoint.layout import complete_iterations, read_tracker
from megacore.errors import CheckpointError


def saves(printed: str) -> list[tuple[int, str]]:
    """Iteration and name of the directory of each save that was published, in order."""
    found = re.findall(r"successfully saved checkpoint from iteration +(\d+) to (\S+)", printed)
    return [(int(iteration), Path(where).name) for iteration, where in found]


@pytest.mark.parametrize("named", [False, True])
def test_only_the_newest_non_persistent_checkpoint_is_kept_and_it_wins(
    tmp_path: Path, named: bool
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    beside = tmp_path / "fast" if named else halves / "non_persistent"
    flags = "--save-interval 4 --non-persistent-save-interval 2"
    if named:
        flags += f" --non-persistent-global-ckpt-dir {beside}"
    expected = losses(train(f"--save {whole} --save-interval 1000"))
    first = train(f"--save {halves} {flags} --exit-interval 7")
    # At a multiple of both the persistent one is written, and no other.
    assert saves(first) == [(2, beside.name), (4, "halves"), (6, beside.name), (7, "halves")]
    assert complete_iterations(beside) == [6]
    # A run that was killed after iteration 6: nothing persistent is newer than 4.
    (halves / "latest_checkpointed_iteration.txt").write_text("4")
    second = train(f"--save {halves} --load {halves} {flags}")
    assert "the newest checkpoint is a non-persistent one" in second
    assert losses(second) == expected[6:]
    assert saves(second) == [(8, "halves")]
    assert_same_bits(stored(whole), stored(halves))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--exit-interval 4", [4]),
        ("--exit-interval 5", [4, 5]),
        ("--train-iters 5", [4, 5]),
        ("--train-iters 4", [4]),
    ],
)
def test_the_last_iteration_is_saved_once(tmp_path: Path, flags: str, expected: list[int]) -> None:
    printed = train(f"--save {tmp_path} --save-interval 4 {flags}")
    assert [iteration for iteration, _ in saves(printed)] == expected
    assert read_tracker(tmp_path) == expected[-1]


def test_a_run_that_is_stopped_at_a_non_persistent_save_is_saved_for_good(tmp_path: Path) -> None:
    flags = "--save-interval 100 --non-persistent-save-interval 2 --exit-interval 4"
    printed = train(f"--save {tmp_path} {flags}")
    assert saves(printed)[-2:] == [(4, "non_persistent"), (4, tmp_path.name)]


def test_saving_in_the_background_gives_the_same_bits(tmp_path: Path) -> None:
    direct, halves = tmp_path / "direct", tmp_path / "halves"
    expected = losses(train(f"--save {direct} --save-interval 1000"))
    flags = f"--save {halves} --save-interval 1 --non-persistent-save-interval 2 --async-save"
    first = train(f"{flags} --exit-interval 5 --save-retain-last 2")
    assert [iteration for iteration, _ in saves(first)] == [1, 2, 3, 4, 5]
    assert first.count("scheduled an async checkpoint save at iteration") == 5
    # The last one is published before the run says that it exits.
    assert first.index("iteration       5 to") < first.index("exiting program at iteration 5")
    assert complete_iterations(halves) == [4, 5]
    second = train(f"{flags} --load {halves} --save-retain-interval 3")
    assert losses(second) == expected[5:]
    assert complete_iterations(halves) == [6, 8]
    assert_same_bits(stored(direct), stored(halves))


def test_a_failed_background_save_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    place = tmp_path / "iter_0000003"
    place.mkdir()
    (place / "foreign.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match=r"iteration 3 could not be saved in the background"):
        train(f"--save {tmp_path} --save-interval 3 --async-save --train-iters 400")
    assert read_tracker(tmp_path) is None


def taken(printed: str) -> dict[str, list[str]]:
    """The table of what a run takes from its checkpoint: name -> the other columns."""
    lines = printed.split("what this run takes from the checkpoint:\n")[1].splitlines()[2:]
    rows = (re.split(r" {2,}", line) for line in lines)
    return {row[0]: row[1:] for row in itertools.takewhile(lambda row: len(row) == 4, rows)}


def test_what_is_taken_from_a_checkpoint_is_said(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 4 --exit-interval 4")
    table = taken(train(f"--load {tmp_path} --train-iters 8"))
    assert table["iteration"] == ["4", "-", "4"]
    assert table["training samples seen"] == ["16", "-", "16"]
    assert table["optimizer and schedule"] == ["stored", "-", "loaded"]
    assert table["layout of processes"] == ["tp 1, cp 1, pp 1, dp 1"] * 3
    assert table["model"] == ["layers 2, hidden 32, heads 4, sequence 24"] * 3
    table = taken(train(f"--load {tmp_path} --finetune"))
    assert table["iteration"] == ["4", "release, or --finetune", "0"]
    assert table["random states"] == ["stored", "release, or --finetune", "fresh"]
    table = taken(train(f"--load {tmp_path} --no-load-rng"))
    assert table["random states"] == ["stored", "--no-load-rng", "fresh"]

"""What a run starts from, for every combination of flags and directories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacore.checkpoint import decide, find_checkpoint, save_checkpoint
from megacore.checkpoint.config import CheckpointConfig
from megacore.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = tmp_path / "saved"
    for iteration in (100, 200):
        save_checkpoint(directory, iteration, tensors={"model": {"w": torch.zeros(1)}}, values={})
    return directory


def plan_of(directory: Path | None = None, **more: object) -> object:
    return decide(CheckpointConfig(load=None if directory is None else str(directory), **more))


def test_without_load_a_run_starts_fresh_and_silently() -> None:
    plan = plan_of()
    assert (plan.source, plan.iteration, plan.warnings) == (None, 0, ())


@pytest.mark.parametrize("make", [False, True])
def test_nothing_to_load_warns_in_a_frame(tmp_path: Path, make: bool) -> None:
    directory = tmp_path / "empty"
    if make:
        directory.mkdir()
        (directory / "tensorboard").mkdir()
    plan = plan_of(directory, save=str(directory))
    assert plan.source is None
    (warning,) = plan.warnings
    assert "NO CHECKPOINT FOUND" in warning
    assert str(directory) in warning
    lines = warning.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[0]) == set(lines[-1]) == {"*"}


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--exit-on-missing-checkpoint", {"exit_on_missing_checkpoint": True}),
        ("--finetune", {"finetune": True}),
        ("--ckpt-step", {"ckpt_step": 100}),
    ],
)
def test_nothing_to_load_is_an_error_when_it_must_be_there(
    tmp_path: Path, flag: str, settings: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint found there, and {flag}") as caught:
        plan_of(tmp_path, **settings)
    assert caught.value.exit_code == 1
    with pytest.raises(CheckpointError, match=f"{flag}: no --load"):
        plan_of(None, **settings)


def test_resume_takes_everything(saved: Path) -> None:
    plan = plan_of(saved)
    assert plan.source == saved / "iter_0000200"
    assert (plan.iteration, plan.weights_only) == (200, False)
    assert (plan.load_optimizer, plan.load_rng) == (True, True)
    assert plan.warnings == ()


def test_flags_leave_parts_out(saved: Path) -> None:
    plan = plan_of(saved, no_load_optim=True)
    assert (plan.iteration, plan.load_optimizer, plan.load_rng) == (200, False, True)
    plan = plan_of(saved, no_load_rng=True)
    assert (plan.iteration, plan.load_optimizer, plan.load_rng) == (200, True, False)
    plan = plan_of(saved, finetune=True)
    assert (plan.iteration, plan.weights_only) == (0, True)
    assert (plan.load_optimizer, plan.load_rng) == (False, False)


def test_another_step(saved: Path) -> None:
    assert plan_of(saved, ckpt_step=100).iteration == 100
    with pytest.raises(CheckpointError, match=r"iter_0000150.*there: 100, 200"):
        plan_of(saved, ckpt_step=150)


def test_a_released_model_is_weights_only(saved: Path) -> None:
    (saved / "iter_0000200").rename(saved / "release")
    (saved / TRACKER).write_bytes(b"release")
    plan = plan_of(saved)
    assert plan.source == saved / "release"
    assert (plan.iteration, plan.weights_only, plan.load_optimizer) == (0, True, False)
    (saved / "release").rename(saved / "gone")
    with pytest.raises(CheckpointError, match=r"release: not found"):
        plan_of(saved)


def test_a_missing_tracker_falls_back_to_the_newest_with_a_warning(saved: Path) -> None:
    (saved / TRACKER).unlink()
    plan = plan_of(saved)
    assert plan.iteration == 200
    assert "has no latest_checkpointed_iteration.txt" in plan.warnings[0]


def test_pretrained_weights_are_used_when_there_is_nothing_to_resume(
    saved: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    for settings in ({}, {"exit_on_missing_checkpoint": True}, {"finetune": True}):
        plan = plan_of(own, pretrained_checkpoint=str(saved), **settings)
        assert plan.source == saved / "iter_0000200"
        assert (plan.iteration, plan.weights_only) == (0, True)
    assert plan_of(None, pretrained_checkpoint=str(saved)).weights_only
    save_checkpoint(own, 7, tensors={}, values={})
    plan = plan_of(own, pretrained_checkpoint=str(saved))
    assert (plan.source, plan.iteration, plan.weights_only) == (own / "iter_0000007", 7, False)
    with pytest.raises(CheckpointError, match="--pretrained-checkpoint"):
        plan_of(tmp_path / "none", pretrained_checkpoint=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="--ckpt-step demands one"):
        plan_of(tmp_path / "none", pretrained_checkpoint=str(saved), ckpt_step=3)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("model.weight/.zarray", "common.pt", "metadata.json"), "Megatron zarr"),
    ],
)
@pytest.mark.parametrize("name", ["iter_0000300", "release"])
@pytest.mark.parametrize("tracked", [True, False])
def test_megatron_checkpoints_are_recognised_and_refused(
    tmp_path: Path, files: tuple[str, ...], kind: str, name: str, tracked: bool
) -> None:
    for file in files:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"sharded_backend": "torch_dist"}')
    if tracked:
        (tmp_path / TRACKER).write_text(name.removeprefix("iter_0000"))
    elif name == "release":
        return  # without a tracker nothing points at it
    with pytest.raises(CheckpointError, match=f"this is a {kind} checkpoint: not supported yet"):
        plan_of(tmp_path)


def test_files_of_ranks_are_recognised(tmp_path: Path) -> None:
    for name, file in {"iter_0000300": "model_optim_rng.pt", "release": "distrib_optim.pt"}.items():
        (tmp_path / name / "mp_rank_00_001").mkdir(parents=True)
        (tmp_path / name / "mp_rank_00_001" / file).touch()
    plan = plan_of(tmp_path)
    assert (plan.source, plan.iteration) == (tmp_path / "iter_0000300", 300)
    (tmp_path / TRACKER).write_text("release")
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint: no mp_rank_\* has"):
        plan_of(tmp_path)


def test_something_unreadable_is_never_a_fresh_start(saved: Path, tmp_path: Path) -> None:
    (saved / "iter_0000200" / "checksums.json").unlink()
    for name in (None, "metadata.json", ".metadata"):
        if name is not None:
            (saved / "iter_0000200" / name).unlink()
        with pytest.raises(CheckpointError, match="not a complete checkpoint"):
            plan_of(saved)
    (saved / TRACKER).write_text("garbage")
    with pytest.raises(CheckpointError, match="garbage"):
        plan_of(saved)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="found a file"):
        plan_of(file)


def test_a_long_iteration_number(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 12_345_678, tensors={}, values={})
    assert path.name == "iter_12345678"
    assert find_checkpoint(tmp_path) == path


def saved_at(directory: Path, *iterations: int) -> Path:
    for iteration in iterations:
        save_checkpoint(directory, iteration, tensors={"model": {"w": torch.zeros(1)}}, values={})
    return directory


@pytest.mark.parametrize(
    ("persistent", "other", "taken"),
    [
        ((100,), (150,), "other"),
        ((100,), (100,), "other"),
        ((200,), (150,), "load"),
        ((200,), (), "load"),
        ((), (150,), "other"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_the_newer_of_persistent_and_non_persistent(
    tmp_path: Path,
    persistent: tuple[int, ...],
    other: tuple[int, ...],
    taken: str,
    named: bool,
) -> None:
    load = tmp_path / "load"
    beside = tmp_path / "fast" if named else load / "non_persistent"
    saved_at(load, *persistent)
    saved_at(beside, *other)
    more = {"non_persistent_global_ckpt_dir": str(beside)} if named else {}
    plan = plan_of(load, **more)
    directory, iterations = (beside, other) if taken == "other" else (load, persistent)
    assert plan.source == directory / f"iter_{iterations[0]:07d}"
    assert plan.iteration == iterations[0]
    assert any("non-persistent" in warning for warning in plan.warnings) == (taken == "other")


def test_a_step_means_the_persistent_checkpoints(tmp_path: Path) -> None:
    load = saved_at(tmp_path / "load", 100)
    saved_at(load / "non_persistent", 150)
    assert plan_of(load, ckpt_step=100).source == load / "iter_0000100"
    with pytest.raises(CheckpointError, match="iteration 150"):
        plan_of(load, ckpt_step=150)


def test_a_non_persistent_checkpoint_outranks_a_release(tmp_path: Path) -> None:
    load = saved_at(tmp_path / "load", 100)
    (load / "iter_0000100").rename(load / "release")
    (load / TRACKER).write_text("release")
    saved_at(load / "non_persistent", 7)
    plan = plan_of(load)
    assert (plan.iteration, plan.weights_only) == (7, False)
    (load / "non_persistent" / TRACKER).write_text("release")
    (load / "non_persistent" / "iter_0000007").rename(load / "non_persistent" / "release")
    with pytest.raises(CheckpointError, match="cannot be a release"):
        plan_of(load)


@pytest.mark.parametrize("same_as", ["save", "load"])
def test_the_place_of_non_persistent_checkpoints_is_another_one(
    tmp_path: Path, same_as: str
) -> None:
    config = CheckpointConfig(
        save=str(tmp_path / "save"),
        load=str(tmp_path / "load"),
        save_interval=10,
        non_persistent_global_ckpt_dir=str(tmp_path / "x" / ".." / same_as),
    )
    assert [fault.id for fault in config.faults()] == ["MC0731"]

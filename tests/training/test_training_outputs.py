"""Files beside the checkpoints: metrics, progress, settings, curves and their picture."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from megacore.errors import DataError
from megacore.training.curves import read_curves
from megacore.training.log_line import IterationRecord, format_iteration, format_validation
from megacore.training.outputs import dump_configs
from megacore.training.plot import main as plot_main
from megacore.training.progress_log import STARTED, JobStart, ProgressLog
from megacore.training.run_config import RunConfig
from megacore.training.writers import JsonLinesWriter, TensorBoardWriter, read_metrics

START = datetime(2026, 1, 2, 3, 4, 5)


def write_run(path: Path, first: int, last: int, *, loss: float) -> None:
    writer = JsonLinesWriter(path)
    writer.write("start", {"iteration": first, "args": {"data_path": ("a", "b")}})
    for iteration in range(first + 1, last + 1):
        values = {"iteration": iteration, "lm loss": loss + iteration, "learning rate": 1e-3}
        writer.write("train", values | {"grad norm": 1.0, "tokens/s": 100.0, "loss scale": 1.0})
    writer.write(
        "evaluate",
        {"iteration": last, "lm loss validation": loss, "lm loss validation ppl": math.exp(loss)},
    )
    writer.close()


def test_metrics_are_json_objects_also_with_nan(tmp_path: Path) -> None:
    writer = JsonLinesWriter(tmp_path / "deep" / "m.jsonl")
    writer.write("train", {"iteration": 1, "lm loss": math.nan, "nested": {"x": -math.inf}})
    writer.close()
    (line,) = (tmp_path / "deep" / "m.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "event": "train",
        "iteration": 1,
        "lm loss": "nan",
        "nested": {"x": "-inf"},
    }


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 0, 8, loss=0.0)
    write_run(path, 5, 10, loss=100.0)
    curves = read_curves(tmp_path)
    assert curves.train["lm loss"].iterations == list(range(1, 11))
    assert curves.train["lm loss"].values == [1, 2, 3, 4, 5, 106, 107, 108, 109, 110]
    assert curves.validation["lm loss"].iterations == [10]
    assert sum(event["event"] == "train" for event in read_metrics(path)) == 10


@pytest.mark.parametrize("cut", [1, 2, 17, 40])
def test_half_a_line_of_a_killed_run_is_no_harm(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 0, 4, loss=0.0)
    path.write_bytes(path.read_bytes()[:-cut])
    write_run(path, 4, 6, loss=0.0)
    assert read_curves(path).train["lm loss"].iterations == [1, 2, 3, 4, 5, 6]


def record(iteration: int, loss: float, throughput: float | None = None) -> IterationRecord:
    return IterationRecord(
        time=START,
        iteration=iteration,
        train_iters=9,
        consumed_samples=8 * iteration,
        elapsed_ms=250.0,
        learning_rate=1e-3 / iteration,
        global_batch_size=8,
        loss_scale=1.0,
        skipped_iterations=0,
        nan_iterations=0,
        losses={"lm loss": loss},
        grad_norm=0.5,
        throughput_tflops=throughput,
    )


@pytest.mark.parametrize("throughput", [None, 3.0])
def test_curves_of_a_log_file_with_a_restart_in_it(
    tmp_path: Path, throughput: float | None
) -> None:
    lines = [
        "using world size: 1",
        *(format_iteration(record(i, i, throughput)) for i in range(1, 6)),
    ]
    lines += [format_validation("iteration 5", {"lm loss": 50.0})]
    lines += [format_iteration(record(i, 10 * i, throughput)) for i in range(4, 8)]
    lines += [format_validation("iteration 5", {"lm loss": 51.0})]
    lines += [format_validation("iteration 7 on test set", {"lm loss": 70.0})]
    (tmp_path / "train.log").write_text("\n".join(lines))
    curves = read_curves(tmp_path)
    assert curves.train["lm loss"].iterations == [1, 2, 3, 4, 5, 6, 7]
    assert curves.train["lm loss"].values == [1, 2, 3, 40, 50, 60, 70]
    assert (curves.validation["lm loss"].iterations, curves.validation["lm loss"].values) == (
        [5],
        [51.0],
    )
    assert curves.throughput_unit == ("TFLOP/s/GPU" if throughput else "iterations/s")
    assert set(curves.throughput.values) == {throughput or 4.0}
    assert curves.grad_norm.values == [0.5] * 7


def test_curves_of_event_files(tmp_path: Path) -> None:
    writer = TensorBoardWriter(str(tmp_path / "tb"), queue_size=10)
    for step in range(1, 5):
        both = {"learning-rate": 0.5 / step, "lm loss": float(step), "grad-norm": 2.0}
        writer.add_scalars(both | {"iteration-time": 0.1}, step)
        writer.add_scalars({f"{tag} vs samples": value for tag, value in both.items()}, 8 * step)
    writer.add_scalars({"lm loss validation": 9.0, "lm loss validation ppl": 1.0}, 4)
    writer.add_scalars({"lm loss validation vs samples": 9.0}, 32)
    writer.close()
    curves = read_curves(tmp_path)
    assert curves.train.keys() == {"lm loss"}
    assert curves.train["lm loss"].values == [1, 2, 3, 4]
    assert curves.validation["lm loss"].values == [9.0]
    assert curves.learning_rate.values == pytest.approx([0.5 / step for step in range(1, 5)])
    assert curves.grad_norm.iterations == [1, 2, 3, 4]


def test_the_picture_shows_every_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "metrics.jsonl", 0, 100, loss=1.0)
    assert plot_main([str(tmp_path), "-o", str(tmp_path / "out" / "a.png")]) == 0
    assert str(tmp_path / "out" / "a.png") in capsys.readouterr().out
    pixels = matplotlib.image.imread(tmp_path / "out" / "a.png")[:, :, :3]
    assert pixels.shape[:2] == (975, 1560)
    middle_x, middle_y = pixels.shape[1] // 2, pixels.shape[0] // 2
    # Training and validation loss, gradient norm and throughput, each in its panel.
    panels = {
        "#2563eb": (slice(0, middle_y), slice(0, middle_x)),
        "#ea580c": (slice(0, middle_y), slice(0, middle_x)),
        "#7c3aed": (slice(middle_y, None), slice(0, middle_x)),
        "#0891b2": (slice(middle_y, None), slice(middle_x, None)),
    }
    for colour, panel in panels.items():
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        close = np.abs(pixels[panel] - wanted).max(axis=-1) < 0.02
        assert close.sum() > 50, colour


def test_a_run_full_of_nan_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "metrics.jsonl", 0, 5, loss=math.nan)
    assert plot_main([str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("make", ["missing", "empty directory", "text file", "start only"])
def test_nothing_to_draw_is_an_error_that_names_the_place(tmp_path: Path, make: str) -> None:
    path = tmp_path / "run"
    if make == "empty directory":
        path.mkdir()
    elif make == "text file":
        path = tmp_path / "notes.txt"
        path.write_text("nothing here\n")
    elif make == "start only":
        path = tmp_path / "m.jsonl"
        JsonLinesWriter(path).write("start", {"iteration": 0})
    with pytest.raises(DataError, match=path.name):
        plot_main([str(path)])


def test_progress_lines_and_their_throughput(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, job_id="77", world_size=2)
    assert log.first_start() is None
    log.append(STARTED, datetime.now() - timedelta(seconds=100))
    job = JobStart(datetime.now() - timedelta(seconds=50), 1e15)
    log.saved(40, operations=3e15, tokens=2.5e9, since_start=job)
    started, saved = (line.split("\t") for line in log.path.read_text().splitlines())
    assert started[1:] == ["Job ID: 77", "# GPUs: 2", "Starting job"]
    assert saved[1:5] == ["Job ID: 77", "# GPUs: 2", "Saved checkpoint", "Iteration: 40"]
    # 2e15 operations in 50 s, and 3e15 in 100 s (to the second), on 2 devices.
    assert saved[5] == "Job throughput: 20.0 TFLOP/s/GPU"
    cumulative = float(saved[6].removeprefix("Cumulative throughput: ").split()[0])
    assert 3e15 / 102 / 2e12 <= cumulative <= 3e15 / 99 / 2e12 + 0.05
    assert saved[7:] == ["Floating-point operations: 3.00e+15", "Tokens (in billions): 2.50"]


def test_progress_counts_from_the_last_change_of_the_number_of_devices(tmp_path: Path) -> None:
    for world_size, day in ((1, 1), (4, 2), (4, 3), (2, 4), (2, 5)):
        log = ProgressLog(tmp_path, job_id="", world_size=world_size)
        log.append(STARTED, datetime(2026, 1, day))
        log.path.write_text(log.path.read_text() + "a line of somebody else\n")
        log.append(f"Saved checkpoint\tFloating-point operations: {day}e+15")
    start = log.first_start()
    assert start == JobStart(datetime(2026, 1, 4), 3e15)
    assert ProgressLog(tmp_path, job_id="", world_size=8).first_start() is None


def test_settings_are_dumped_by_class_and_start(tmp_path: Path) -> None:
    run = RunConfig()
    dump_configs(run, tmp_path)
    dump_configs(run, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "ModelConfig.rank_0.iter0.json" in names
    assert "ModelConfig.rank_0.iter1.json" in names
    assert len(names) == 2 * len(run.components)
    loaded = json.loads((tmp_path / "BatchConfig.rank_0.iter1.json").read_text())
    assert loaded["micro_batch_size"] is None

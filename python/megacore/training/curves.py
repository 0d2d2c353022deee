"""Curves of a run, read back from what the run left: JSON lines, event files or a log file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacore.errors import DataError
from megacore.training.log_line import parse_iteration, parse_validation
from megacore.training.writers import TRAIN_KEYS, read_metrics

METRICS_FILE = "metrics.jsonl"
EVENT_FILES = "*tfevents*"
LOG_SUFFIXES = (".log", ".out", ".txt")
_SAMPLES_TWIN = " vs samples"
_VALIDATION = " validation"
_NOT_LOSSES = {
    "learning-rate",
    "decoupled-learning-rate",
    "skipped-train-samples",
    "batch-size",
    "loss-scale",
    "world-size",
    "grad-norm",
    "num-zeros",
    "params-norm",
}


@dataclass
class Series:
    """Values by iteration."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, iteration: int, value: Any) -> None:
        """Append a value; the strings "nan" and "inf" of a JSON file are understood."""
        if value is None:
            return
        # A restarted run does iterations again: the later ones count.
        while self.iterations and self.iterations[-1] >= iteration:
            self.iterations.pop()
            self.values.pop()
        self.iterations.append(iteration)
        self.values.append(float(value))

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Curves:
    """What `megacore plot` draws.

    Attributes:
        source: The file or directory it was read from.
        train: Loss name -> mean training loss.
        validation: Loss name -> validation loss.
        learning_rate: Learning rate.
        grad_norm: Gradient norm before clipping.
        throughput: Speed, in `throughput_unit`.
        throughput_unit: "tokens/s", "TFLOP/s/GPU" or "iterations/s".
    """

    source: Path
    train: dict[str, Series] = field(default_factory=dict)
    validation: dict[str, Series] = field(default_factory=dict)
    learning_rate: Series = field(default_factory=Series)
    grad_norm: Series = field(default_factory=Series)
    throughput: Series = field(default_factory=Series)
    throughput_unit: str = "tokens/s"


def read_curves(path: Path) -> Curves:
    """The curves of a run directory, or of one JSON-lines, event or log file.

    A directory is searched for `metrics.jsonl`, then for event files (also one level down), then
    for log files.

    Raises:
        DataError: There is nothing to read, or nothing in it.
    """
    curves = _read(path)
    if not curves.train and not curves.validation:
        raise DataError(f"{curves.source}: no training or validation loss found in it")
    return curves


def _read(path: Path) -> Curves:
    if path.is_dir():
        if (path / METRICS_FILE).is_file():
            return curves_of_metrics(path / METRICS_FILE)
        for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
            if any(folder.glob(EVENT_FILES)):
                return curves_of_events(folder)
        logs = sorted(p for p in path.iterdir() if p.suffix in LOG_SUFFIXES and p.is_file())
        found = [curves for curves in map(curves_of_log, logs) if curves.train]
        if found:
            return found[-1]
        raise DataError(
            f"{path}: expected {METRICS_FILE}, TensorBoard event files or a log file in this "
            "directory, found none"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file or directory")
    if "tfevents" in path.name:
        return curves_of_events(path)
    if path.suffix in (".jsonl", ".json"):
        return curves_of_metrics(path)
    return curves_of_log(path)


def curves_of_metrics(path: Path) -> Curves:
    """Curves of a JSON-lines file."""
    curves = Curves(path)
    for event in read_metrics(path):
        iteration = int(event.get("iteration", 0))
        if event["event"] == "train":
            losses = {key: event[key] for key in event.keys() - TRAIN_KEYS}
            _add_losses(curves.train, iteration, losses)
            curves.learning_rate.add(iteration, event.get("learning rate"))
            curves.grad_norm.add(iteration, event.get("grad norm"))
            curves.throughput.add(iteration, event.get("tokens/s"))
        elif event["event"] == "evaluate":
            losses = {
                key.removesuffix(_VALIDATION): event[key]
                for key in event
                if key.endswith(_VALIDATION)
            }
            _add_losses(curves.validation, iteration, losses)
    return curves


def curves_of_log(path: Path) -> Curves:
    """Curves of a log in the format of `megacore.training.log_line`; restarts may be in it."""
    curves = Curves(path, throughput_unit="iterations/s")
    records, validations = [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            record = parse_iteration(line)
            if record is not None:
                records.append(record)
                continue
            validation = parse_validation(line)
            if validation is not None and validation.set_name != "test":
                validations.append(validation)
    flops_shown = bool(records) and all(r.throughput_tflops is not None for r in records)
    if flops_shown:
        curves.throughput_unit = "TFLOP/s/GPU"
    for record in records:
        _add_losses(curves.train, record.iteration, record.losses)
        curves.learning_rate.add(record.iteration, record.learning_rate)
        curves.grad_norm.add(record.iteration, record.grad_norm)
        if flops_shown:
            curves.throughput.add(record.iteration, record.throughput_tflops)
        elif record.elapsed_ms > 0:
            curves.throughput.add(record.iteration, 1000.0 / record.elapsed_ms)
    for validation in validations:
        _add_losses(curves.validation, validation.iteration, validation.losses)
    return curves


def curves_of_events(path: Path) -> Curves:
    """Curves of TensorBoard event files (a file, or all in a directory).

    Raises:
        DataError: The tensorboard package is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise DataError(
            f"{path}: reading event files needs the tensorboard package "
            "(pip install 'megacore[writers]')"
        ) from error
    # 0 keeps every scalar; the default keeps a sample of 10,000.
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    curves = Curves(path, throughput_unit="iterations/s")

    def series(tag: str) -> Series:
        result = Series()
        if tag in tags:
            for event in events.Scalars(tag):
                result.add(event.step, event.value)
        return result

    for tag in sorted(tags):
        name = tag.removesuffix(_VALIDATION)
        if f"{tag}{_SAMPLES_TWIN}" not in tags or tag in _NOT_LOSSES:
            continue
        (curves.train if name == tag else curves.validation)[name] = series(tag)
    curves.learning_rate = series("learning-rate")
    curves.grad_norm = series("grad-norm")
    if "throughput" in tags:
        curves.throughput, curves.throughput_unit = series("throughput"), "TFLOP/s/GPU"
    elif "learning-rate" in tags:
        last = None
        for event in events.Scalars("learning-rate"):
            if last is not None and event.step > last.step and event.wall_time > last.wall_time:
                rate = (event.step - last.step) / (event.wall_time - last.wall_time)
                curves.throughput.add(event.step, rate)
            last = event
    return curves


def _add_losses(
    target: dict[str, Series], iteration: int, losses: Mapping[str, float | str]
) -> None:
    for name, value in losses.items():
        target.setdefault(name, Series()).add(iteration, value)

"""Opens what a run writes besides checkpoints: event files, metrics, progress, settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from megacore.parallel.launch import job_id
from megacore.training.curves import METRICS_FILE
from megacore.training.progress_log import STARTED, JobStart, ProgressLog
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState
from megacore.training.writers import JsonLinesWriter, Writer, open_writers


@dataclass(frozen=True)
class Outputs:
    """What the reporter and the checkpoints write to.

    Attributes:
        writers: TensorBoard and W&B.
        json_lines: The metrics file, or None.
        progress: `progress.txt`, or None.
        job: When this process started, and the operations done before it.
    """

    writers: list[Writer]
    json_lines: JsonLinesWriter | None
    progress: ProgressLog | None
    job: JobStart


def metrics_path(run: RunConfig) -> Path | None:
    """`--metrics-jsonl`, else metrics.jsonl in `--save`, else nowhere."""
    if run.logging.metrics_jsonl is not None:
        return Path(run.logging.metrics_jsonl)
    if run.checkpoint.save is not None:
        return Path(run.checkpoint.save) / METRICS_FILE
    return None


def open_outputs(
    run: RunConfig,
    *,
    stack: ExitStack,
    state: RunState,
    arguments: Mapping[str, Any],
    started: datetime,
    rank: int = 0,
    world_size: int = 1,
) -> Outputs:
    """Open everything that the settings ask for; the stack closes it.

    Only the first process writes what is said once; the settings (`--config-logger-dir`) are
    written by each.

    Args:
        run: Resolved settings.
        stack: Closes the files.
        state: Counters at the start of this process.
        arguments: Settings shown with a W&B run.
        started: When this process started.
        rank: Rank of this process.
        world_size: Number of processes.
    """
    if run.logging.config_logger_dir:
        dump_configs(run, Path(run.logging.config_logger_dir), rank=rank)
    job = JobStart(started, state.floating_point_operations)
    if rank != 0:
        return Outputs([], None, None, job)
    writers = open_writers(run.logging, settings=arguments, resume=state.iteration > 0)
    for writer in writers:
        stack.callback(writer.close)
    json_lines = None
    path = metrics_path(run)
    if path is not None:
        json_lines = JsonLinesWriter(path)
        stack.callback(json_lines.close)
    progress = None
    if run.logging.log_progress and run.checkpoint.save is not None:
        progress = ProgressLog(Path(run.checkpoint.save), job_id=job_id(), world_size=world_size)
        progress.append(STARTED, started)
    return Outputs(writers, json_lines, progress, job)


def dump_configs(run: RunConfig, directory: Path, *, rank: int = 0) -> None:
    """Write each component's settings as JSON: `<class>.rank_<rank>.iter<count>.json`.

    The count keeps the files of earlier starts.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for field in fields(run):
        component = getattr(run, field.name)
        stem = f"{type(component).__name__}.rank_{rank}.iter"
        count = 0
        while (directory / f"{stem}{count}.json").exists():
            count += 1
        text = orjson.dumps(asdict(component), option=orjson.OPT_INDENT_2)
        (directory / f"{stem}{count}.json").write_bytes(text + b"\n")

"""`progress.txt` in the checkpoint directory: starts and saves, one tab-separated line each.

The file is read back to know how much was computed since the number of devices last changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from megacore.training.log_line import TIME_FORMAT

FILE_NAME = "progress.txt"
STARTED = "Starting job"
SAVED = "Saved checkpoint"
_OPERATIONS = "Floating-point operations: "


@dataclass(frozen=True)
class JobStart:
    """The first start with the present number of devices, and the operations done before it."""

    time: datetime
    operations: float


class ProgressLog:
    """Appends to and reads `progress.txt`.

    Args:
        directory: The checkpoint directory; made if it is not there.
        job_id: Identifier of the cluster job, empty outside one.
        world_size: Number of devices.
    """

    def __init__(self, directory: Path, *, job_id: str, world_size: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE_NAME
        self._job_id = job_id
        self._world_size = world_size

    def append(self, message: str, moment: datetime | None = None) -> None:
        """Append one line; it reaches the file in one write."""
        moment = moment or datetime.now()
        line = "\t".join(
            [
                moment.strftime(TIME_FORMAT),
                f"Job ID: {self._job_id}",
                f"# GPUs: {self._world_size}",
                message,
            ]
        )
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)

    def saved(
        self, iteration: int, *, operations: float, tokens: float, since_start: JobStart
    ) -> None:
        """Append the line of a saved checkpoint.

        Args:
            iteration: Iteration of the checkpoint.
            operations: Floating-point operations since the start of training.
            tokens: Tokens since the start of training.
            since_start: When this job started, and the operations done before it.
        """
        now = datetime.now()
        job = self._throughput(operations, now, since_start)
        cumulative = self._throughput(operations, now, self.first_start() or since_start)
        fields = [
            SAVED,
            f"Iteration: {iteration}",
            f"Job throughput: {job:.1f} TFLOP/s/GPU",
            f"Cumulative throughput: {cumulative:.1f} TFLOP/s/GPU",
            f"{_OPERATIONS}{operations:.2e}",
            f"Tokens (in billions): {tokens / 1e9:.2f}",
        ]
        self.append("\t".join(fields), now)

    def _throughput(self, operations: float, now: datetime, start: JobStart) -> float:
        seconds = max((now - start.time).total_seconds(), 1e-9)
        return (operations - start.operations) / (seconds * 1e12 * self._world_size)

    def first_start(self) -> JobStart | None:
        """The first start since the number of devices last changed, or None for an empty file.

        Lines that do not have the form of this file are passed over.
        """
        result: JobStart | None = None
        world_size = None
        operations = 0.0
        if not self.path.is_file():
            return None
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split("\t")
            try:
                moment = datetime.strptime(fields[0], TIME_FORMAT)
                gpus = int(fields[2].removeprefix("# GPUs: "))
                message = fields[3]
            except (ValueError, IndexError):
                continue
            if message == STARTED and gpus != world_size:
                world_size, result = gpus, JobStart(moment, operations)
            for part in fields[4:]:
                if part.startswith(_OPERATIONS):
                    try:
                        operations = float(part.removeprefix(_OPERATIONS))
                    except ValueError:
                        continue
        return result if world_size == self._world_size else None

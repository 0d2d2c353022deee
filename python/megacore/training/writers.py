"""Where metrics go besides the log line: TensorBoard, Weights & Biases, a JSON-lines file.

A writer takes scalars and texts by tag and step. TensorBoard and W&B are optional packages and are
imported only when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from megacore.errors import UsageError
from megacore.training.config import LoggingConfig
from megacore.training.log_line import FIELD_OF_NAME

RUN_ID_FILE = "megacore_run_id.txt"

#: Names in a "train" line that are not losses.
TRAIN_KEYS = frozenset(FIELD_OF_NAME) | {
    "event",
    "time",
    "iteration",
    "tokens/s",
    "TFLOP/s",
    "TFLOP/s causal",
    "TFLOP/s with recompute",
    "MFU",
    "memory bytes",
    "peak memory bytes",
    "seconds left",
}


class Writer(Protocol):
    """What the loop asks of a writer."""

    #: Whether the writer also shows "<tag> vs samples" (its x axis can be anything).
    takes_samples_axis: bool

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write one value per tag."""
        ...

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Write a text, such as the configuration."""
        ...

    def close(self) -> None:
        """Bring everything to disk."""
        ...


class TensorBoardWriter:
    """Event files in `directory`."""

    takes_samples_axis = True

    def __init__(self, directory: str, *, queue_size: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "--tensorboard-dir needs the tensorboard package: pip install 'megacore[writers]'"
            ) from error
        self._writer = SummaryWriter(log_dir=directory, max_queue=queue_size)

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write one value per tag."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self._writer.add_text(tag, text, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run.

    Args:
        project: Project name.
        name: Run name.
        directory: Where the run keeps its files.
        settings: The configuration shown with the run.
        resume: Go on with the run that this directory held last, instead of a new one.
    """

    takes_samples_axis = False

    def __init__(
        self,
        project: str,
        *,
        name: str,
        directory: Path,
        settings: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError(
                "--wandb-project needs the wandb package: pip install 'megacore[writers]'"
            ) from error
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / RUN_ID_FILE
        run_id = None
        if resume and id_file.is_file():
            run_id = id_file.read_text(encoding="ascii").strip() or None
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(directory),
            config=dict(settings),
            id=run_id,
            resume="allow" if run_id else None,
            reinit="finish_previous",
        )
        id_file.write_text(self._run.id, encoding="ascii")

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write one value per tag."""
        self._run.log(dict(scalars), step=step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Texts are part of the run's settings, so there is nothing to add."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class JsonLinesWriter:
    """One JSON object per event, appended to a file that survives restarts.

    Every line has "event" ("start", "train" or "evaluate"), "iteration", and values under the names
    of the log line ("lm loss", "learning rate", ...) or of the TensorBoard tags ("lm loss
    validation"). A resumed run starts with a "start" line too. Nothing is ever removed: a reader
    that meets a "start" drops the lines before it that lie beyond its iteration, see
    `read_metrics`.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # A killed run may have left half a line; the newline makes it one unreadable line.
        broken = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
        self._file = path.open("ab")
        if broken:
            self._file.write(b"\n")

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        clean = {key: _plain(value) for key, value in values.items()}
        self._file.write(orjson.dumps({"event": event, **clean}) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events of a JSON-lines file, without those that a resumed run did again.

    Lines that are no JSON object (the end of a killed run) are passed over.
    """
    events: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if not isinstance(event, dict) or "event" not in event:
                continue
            if event["event"] == "start":
                first = event.get("iteration", 0)
                events = [old for old in events if old.get("iteration", 0) <= first]
            events.append(event)
    return events


def open_writers(
    logging: LoggingConfig, *, settings: Mapping[str, Any], resume: bool = False
) -> list[Writer]:
    """The TensorBoard and W&B writers that the settings ask for.

    Args:
        logging: Resolved directories, project and run name.
        settings: Flag destination -> value, shown with a W&B run.
        resume: Whether this run goes on from a checkpoint.

    Raises:
        UsageError: The package a writer needs is not installed.
    """
    writers: list[Writer] = []
    if logging.tensorboard_dir:
        writer = TensorBoardWriter(
            logging.tensorboard_dir, queue_size=logging.tensorboard_queue_size
        )
        writers.append(writer)
    if logging.wandb_project:
        writers.append(
            WandbWriter(
                logging.wandb_project,
                name=logging.wandb_exp_name,
                directory=Path(logging.wandb_save_dir),
                settings=settings,
                resume=resume,
            )
        )
    return writers

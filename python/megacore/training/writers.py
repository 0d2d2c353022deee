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

from megacore.errors import ConfigError, Fault, UsageError
from megacore.training.config import LoggingConfig


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
        self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
            log_dir=directory, max_queue=queue_size
        )

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Write one value per tag."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)  # type: ignore[no-untyped-call]

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self._writer.add_text(tag, text, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WandbWriter:
    """A Weights & Biases run.

    Args:
        project: Project name.
        name: Run name.
        directory: Where the run keeps its files.
        settings: The configuration shown with the run.
    """

    takes_samples_axis = False

    def __init__(
        self, project: str, *, name: str, directory: Path, settings: Mapping[str, Any]
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError(
                "--wandb-project needs the wandb package: pip install 'megacore[writers]'"
            ) from error
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project, name=name, dir=str(directory), config=dict(settings), reinit=True
        )

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

    Every line has "event": "start" (also of a resumed run, with the iteration it starts from),
    "train" or "evaluate". Nothing is ever removed: a reader that meets a "start" drops the
    lines before it that lie beyond its iteration, see `read_metrics`.
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


def wandb_directory(logging: LoggingConfig, save: str | None) -> Path:
    """`--wandb-save-dir`, else `wandb` inside `--save`, else inside the current directory."""
    if logging.wandb_save_dir:
        return Path(logging.wandb_save_dir)
    return Path(save or ".") / "wandb"


def open_writers(
    logging: LoggingConfig, *, save: str | None, settings: Mapping[str, Any]
) -> list[Writer]:
    """The TensorBoard and W&B writers that the settings ask for.

    Args:
        logging: Directories, project and run name.
        save: Checkpoint directory, the default home of W&B files.
        settings: Flag destination -> value, written as text.

    Raises:
        ConfigError: A W&B project without a run name.
        UsageError: The package a writer needs is not installed.
    """
    if logging.wandb_project and not logging.wandb_exp_name:
        fault = Fault(
            "MC0601",
            "a W&B run needs a name",
            {"--wandb-project": logging.wandb_project, "--wandb-exp-name": "''"},
            "--wandb-exp-name NAME",
        )
        raise ConfigError([fault])
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
                directory=wandb_directory(logging, save),
                settings=settings,
            )
        )
    return writers

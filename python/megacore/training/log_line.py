"""The log lines of a training run, in the format that Megatron's dashboards and regexes read.

Writing and reading live side by side so that they cannot drift apart: `megacore plot` parses what
the loop prints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
PERPLEXITY_EXPONENT_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """What one log line says about the iterations since the line before.

    Attributes:
        time: When the line was made.
        iteration: Iterations done since the start of training, over all restarts.
        train_iters: Iteration at which training ends.
        consumed_samples: Sequences used for training so far.
        skipped_samples: Sequences left out because the running batch was rounded down.
        elapsed_ms: Mean wall time of one iteration, milliseconds.
        throughput_tflops: TFLOP/s per device, or None when it is not shown.
        learning_rate: Rate that the next iteration will use.
        decoupled_learning_rate: Rate of embedding and output layer, or None when not decoupled.
        global_batch_size: Sequences of the last iteration.
        losses: Loss name -> mean over the iterations that were not skipped; NaN is a value.
        loss_scale: Scale of the loss in the last iteration.
        grad_norm: L2 norm of the gradient before clipping, or None when it was not computed.
        num_zeros: Zero entries of the gradient, or None when they were not counted.
        params_norm: L2 norm of the parameters, or None when it was not computed.
        skipped_iterations: Iterations whose update was skipped (overflow).
        nan_iterations: Iterations with a loss or gradient norm that is not finite.
    """

    time: datetime
    iteration: int
    train_iters: int
    consumed_samples: int
    elapsed_ms: float
    learning_rate: float
    global_batch_size: int
    loss_scale: float
    skipped_iterations: int
    nan_iterations: int
    losses: Mapping[str, float] = field(default_factory=dict)
    skipped_samples: int = 0
    throughput_tflops: float | None = None
    decoupled_learning_rate: float | None = None
    grad_norm: float | None = None
    num_zeros: float | None = None
    params_norm: float | None = None


def format_iteration(record: IterationRecord) -> str:
    """The log line of `record`."""
    parts = [
        f" [{record.time.strftime(TIME_FORMAT)}]",
        f" iteration {record.iteration:8d}/{record.train_iters:8d} |",
        f" consumed samples: {record.consumed_samples:12d} |",
    ]
    if record.skipped_samples > 0:
        parts.append(f" skipped samples: {record.skipped_samples:12d} |")
    parts.append(f" elapsed time per iteration (ms): {record.elapsed_ms:.1f} |")
    if record.throughput_tflops is not None:
        parts.append(f" throughput per GPU (TFLOP/s/GPU): {record.throughput_tflops:.1f} |")
    parts.append(f" learning rate: {record.learning_rate:.6E} |")
    if record.decoupled_learning_rate is not None:
        parts.append(f" decoupled learning rate: {record.decoupled_learning_rate:.6E} |")
    parts.append(f" global batch size: {record.global_batch_size:5d} |")
    parts += [f" {key}: {value:.6E} |" for key, value in record.losses.items()]
    parts.append(f" loss scale: {record.loss_scale:.1f} |")
    if record.grad_norm is not None:
        parts.append(f" grad norm: {record.grad_norm:.3f} |")
    if record.num_zeros is not None:
        parts.append(f" num zeros: {record.num_zeros:.1f} |")
    if record.params_norm is not None:
        parts.append(f" params norm: {record.params_norm:.3f} |")
    parts.append(f" number of skipped iterations: {record.skipped_iterations:3d} |")
    parts.append(f" number of nan iterations: {record.nan_iterations:3d} |")
    return "".join(parts)


_HEAD = re.compile(
    r"\s*\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)?\]"
    r"\s*iteration\s+(?P<iteration>\d+)/\s*(?P<train_iters>\d+) \|"
)
_FIELD = re.compile(r"\s*([^:|]+?):\s*([^|]*?)\s*\|")
FIELD_OF_NAME = {
    "consumed samples": "consumed_samples",
    "skipped samples": "skipped_samples",
    "elapsed time per iteration (ms)": "elapsed_ms",
    "throughput per GPU (TFLOP/s/GPU)": "throughput_tflops",
    "learning rate": "learning_rate",
    "decoupled learning rate": "decoupled_learning_rate",
    "global batch size": "global_batch_size",
    "loss scale": "loss_scale",
    "grad norm": "grad_norm",
    "num zeros": "num_zeros",
    "params norm": "params_norm",
    "number of skipped iterations": "skipped_iterations",
    "number of nan iterations": "nan_iterations",
}
_INTEGER_FIELDS = {
    "consumed_samples",
    "skipped_samples",
    "global_batch_size",
    "skipped_iterations",
    "nan_iterations",
}
_REQUIRED_FIELDS = {
    "consumed_samples",
    "elapsed_ms",
    "learning_rate",
    "global_batch_size",
    "loss_scale",
    "skipped_iterations",
    "nan_iterations",
}


def parse_iteration(line: str) -> IterationRecord | None:
    """The record a log line was made from (to the printed digits), or None for any other line.

    Fields between the batch size and the loss scale whose names are not known are losses; other
    unknown fields (newer writers add some) are passed over.
    """
    head = _HEAD.search(line)
    if head is None:
        return None
    known: dict[str, float | int] = {}
    losses: dict[str, float] = {}
    for match in _FIELD.finditer(line, head.end()):
        name = FIELD_OF_NAME.get(match[1])
        try:
            value = float(match[2])
        except ValueError:
            continue
        if name is not None:
            known[name] = int(value) if name in _INTEGER_FIELDS else value
        elif "global_batch_size" in known and "loss_scale" not in known:
            losses[match[1]] = value
    if not known.keys() >= _REQUIRED_FIELDS:
        return None
    return IterationRecord(
        time=datetime.strptime(head["time"], TIME_FORMAT),
        iteration=int(head["iteration"]),
        train_iters=int(head["train_iters"]),
        losses=losses,
        **known,  # type: ignore[arg-type]
    )


def perplexity(loss: float) -> float:
    """exp(loss), with the exponent capped at 20 so that a diverged run still prints a number."""
    return math.exp(min(loss, PERPLEXITY_EXPONENT_LIMIT))


def format_validation(prefix: str, losses: Mapping[str, float]) -> str:
    """The three lines of a validation result.

    Args:
        prefix: "iteration N", at the end of training "iteration N on validation set" and
            "iteration N on test set".
        losses: Loss name -> mean over all evaluated tokens.
    """
    text = f" validation loss at {prefix} | "
    for key, value in losses.items():
        text += f"{key} value: {value:.6E} | {key} PPL: {perplexity(value):.6E} | "
    rule = "-" * (len(text) + 1)
    return f"{rule}\n{text}\n{rule}"


@dataclass(frozen=True)
class ValidationRecord:
    """What a validation line says: the iteration, the set ("", "validation", "test"), losses."""

    iteration: int
    set_name: str
    losses: Mapping[str, float]


_VALIDATION_HEAD = re.compile(
    r"\s*validation loss at iteration (?P<iteration>\d+)(?: on (?P<set>validation|test) set)? \|"
)
_VALIDATION_FIELD = re.compile(r"\s*([^|]+?) value:\s*([^|\s]+)\s*\|")


def parse_validation(line: str) -> ValidationRecord | None:
    """The record a validation line was made from, or None for any other line."""
    head = _VALIDATION_HEAD.search(line)
    if head is None:
        return None
    losses: dict[str, float] = {}
    for match in _VALIDATION_FIELD.finditer(line, head.end()):
        try:
            losses[match[1]] = float(match[2])
        except ValueError:
            continue
    return ValidationRecord(int(head["iteration"]), head["set"] or "", losses)


def format_moment(message: str, moment: datetime | None = None) -> str:
    """A stage of the run with its time: `[after dataloaders are built] datetime: ...`."""
    moment = moment or datetime.now()
    return f"[{message}] datetime: {moment.strftime(TIME_FORMAT)} "

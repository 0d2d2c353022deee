"""Settings of `megacore evaluate` and tasks/main.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

ZERO_SHOT_TASKS = ("WIKITEXT103", "LAMBADA")
FINETUNING_TASKS = ("RACE", "MNLI", "QQP")
RETRIEVAL_TASKS = ("RETRIEVER-EVAL", "ICT-ZEROSHOT-NQ")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which task, its files, and how it is scored."""

    GROUP: ClassVar[str] = "task"

    task: str | None = flag(
        "--task",
        default=None,
        choices=(*ZERO_SHOT_TASKS, *FINETUNING_TASKS, *RETRIEVAL_TASKS),
        help="name of the task; required",
    )
    train_data: tuple[str, ...] | None = flag(
        "--train-data", default=None, nargs="+", help="files or folders to finetune on"
    )
    valid_data: tuple[str, ...] | None = flag(
        "--valid-data",
        default=None,
        nargs="*",
        help="files or folders to score; exactly one for WIKITEXT103 and LAMBADA",
    )
    epochs: int | None = flag(
        "--epochs",
        default=None,
        help="passes over the training data; 0 scores the model of --load",
        bounds="[0, inf)",
    )
    keep_last: bool = flag(
        "--keep-last", default=False, help="train on the last batch of an epoch if it is smaller"
    )
    overlapping_eval: int = flag(
        "--overlapping-eval",
        default=32,
        help="WIKITEXT103: tokens from one window to the next",
        bounds="[1, inf)",
    )
    strict_lambada: bool = flag(
        "--strict-lambada",
        default=False,
        help="LAMBADA: all tokens of the last word must be right, not only its last token",
    )

    @property
    def is_zero_shot(self) -> bool:
        """Whether a GPT is scored as it is."""
        return self.task in ZERO_SHOT_TASKS

    @property
    def is_finetuning(self) -> bool:
        """Whether an encoder is finetuned, or one that was is scored."""
        return self.task in FINETUNING_TASKS

    def faults(self) -> Iterator[Fault]:
        """What is missing or too much for the task."""
        yield from value_faults(self)
        if self.task is None:
            yield required("--task")
        elif not self.valid_data:
            if self.task not in RETRIEVAL_TASKS:
                yield required("--valid-data")
        elif self.is_zero_shot and len(self.valid_data) > 1:
            given = {"--task": self.task, "--valid-data": " ".join(self.valid_data)}
            yield fault("MC1340", given, allowed="one file")
        if self.is_finetuning:
            if self.epochs is None:
                yield required("--epochs")
            elif self.epochs > 0 and not self.train_data:
                yield required("--train-data")

    def notes(self) -> list[str]:
        """Remarks on settings that have no effect for this task, one line each."""
        unused = {
            "--strict-lambada": self.strict_lambada and self.task != "LAMBADA",
            "--train-data": bool(self.train_data) and not self.is_finetuning,
            "--epochs": self.epochs is not None and not self.is_finetuning,
            "--keep-last": self.keep_last and not self.is_finetuning,
            "--valid-data": bool(self.valid_data) and self.task in RETRIEVAL_TASKS,
        }
        return [f"{name} has no effect on {self.task}" for name, there in unused.items() if there]

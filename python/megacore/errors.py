"""Errors a user can act on, and the exit code each one ends the process with.

Exit codes: 0 done or intended early stop; 1 run-time failure; 2 usage or configuration;
130 / 143 ended by SIGINT / SIGTERM without a handler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class MegacoreError(Exception):
    """A failure that is reported as one clear message, without a traceback.

    Attributes:
        exit_code: Of the process.
        is_common: Every process of a run ends with the same message, so that once is enough.
    """

    exit_code = EXIT_FAILURE
    is_common = False


class DataError(MegacoreError):
    """A data file or dataset is missing, damaged or inconsistent; the message names the file."""


class CheckpointError(MegacoreError):
    """A checkpoint is missing, damaged or does not fit; the message names file or tensor."""


class UnsafeFileError(CheckpointError):
    """A file is refused: it holds something that no checkpoint needs; nothing of it was executed.

    The message names the file, the record in it, the position and what stands there.
    """


class CommunicationError(MegacoreError):
    """An operation between processes failed, timed out or did not match on all of them.

    Attributes:
        rank: Rank of this process in the whole run.
        operation: Name of the operation, such as "all_reduce".
        group: Name of the group, such as "tp".
        ranks: Ranks of the group's members.
        shape: Shape of the tensor, or None where there is none.
        dtype: Name of its dtype, or None.
        step: Training step, or None before the first one.
        cause: What went wrong, in words.
    """

    def __init__(
        self,
        *,
        rank: int,
        operation: str,
        group: str,
        ranks: Sequence[int],
        shape: Sequence[int] | None,
        dtype: str | None,
        step: int | None,
        cause: str,
    ) -> None:
        self.rank = rank
        self.operation = operation
        self.group = group
        self.ranks = tuple(ranks)
        self.shape = None if shape is None else tuple(shape)
        self.dtype = dtype
        self.step = step
        self.cause = cause
        members = ", ".join(map(str, self.ranks[:16]))
        if len(self.ranks) > 16:
            members += f", ... ({len(self.ranks)} ranks)"
        tensor = "" if shape is None else f" of a tensor {list(shape)} {dtype}"
        when = "before the first step" if step is None else f"in step {step}"
        super().__init__(
            f"rank {rank}: {operation}{tensor} in group {group} (ranks {members}) failed {when}: "
            f"{cause}"
        )


class Information(MegacoreError):
    """Not a failure but an answer, to `--help` or `--print-config`: printed, with exit code 0."""

    exit_code = EXIT_OK


class UsageError(MegacoreError):
    """The command line or a configuration file cannot be understood."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Fault:
    """One broken rule of a configuration.

    Attributes:
        id: Stable identifier, "MC0001" and so on, documented in docs/errors.md.
        rule: What must hold, one sentence.
        given: Flag (or setting) name -> the value that was given.
        allowed: What would be accepted instead.
    """

    id: str
    rule: str
    given: Mapping[str, object] = field(default_factory=dict)
    allowed: str = ""

    def __str__(self) -> str:
        given = ", ".join(
            f"{name} {'(not given)' if value is None else value}".strip()
            for name, value in self.given.items()
        )
        lines = [f"[{self.id}] {self.rule}"]
        if given:
            lines.append(f"    given:   {given}")
        if self.allowed:
            lines.append(f"    allowed: {self.allowed}")
        return "\n".join(lines)


class ConfigError(UsageError):
    """One or more faults of a configuration, all of those that could be found at once."""

    is_common = True

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        head = f"{count} configuration fault{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(str(fault) for fault in self.faults)]))

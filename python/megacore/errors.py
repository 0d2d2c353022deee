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
    """A failure that is reported as one clear message, without a traceback."""

    exit_code = EXIT_FAILURE


class DataError(MegacoreError):
    """A data file or dataset is missing, damaged or inconsistent; the message names the file."""


class CheckpointError(MegacoreError):
    """A checkpoint is missing, damaged or does not fit; the message names file or tensor."""


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

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        head = f"{count} configuration fault{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(str(fault) for fault in self.faults)]))

"""Counters of a run that go through its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from megacore.errors import CheckpointError


@dataclass
class RunState:
    """How far a run has come, over all restarts.

    Attributes:
        iteration: Iterations done.
        consumed_train_samples: Sequences used for training.
        consumed_valid_samples: Sequences used for validation.
        skipped_train_samples: Sequences left out because the running batch was rounded down.
        floating_point_operations: Operations of training, by the convention of the log line.
    """

    iteration: int = 0
    consumed_train_samples: int = 0
    consumed_valid_samples: int = 0
    skipped_train_samples: int = 0
    floating_point_operations: float = 0.0

    def values(self) -> dict[str, int | float]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunState:
        """From the JSON values of a checkpoint.

        Raises:
            CheckpointError: A counter is missing, negative or not a number.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            kinds = (int, float) if field.type == "float" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
                raise CheckpointError(
                    f"checkpoint counter {field.name}: expected a number that is not negative, "
                    f"found {value!r}"
                )
            found[field.name] = value
        return cls(**found)

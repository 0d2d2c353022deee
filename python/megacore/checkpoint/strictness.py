"""What happens to tensors that only the checkpoint has, or only the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strictness:
    """What is done about tensors that only one side has: "raise", "log" or "ignore".

    Attributes:
        missing: About those that the checkpoint lacks; they keep their values.
        unexpected: About those that nobody asked for.
    """

    missing: str
    unexpected: str


STRICT = Strictness("raise", "raise")

# Values of --dist-ckpt-strictness.
STRICTNESS = {
    "assume_ok_unexpected": Strictness("raise", "log"),
    "log_unexpected": Strictness("raise", "log"),
    "log_all": Strictness("log", "log"),
    "raise_unexpected": Strictness("raise", "raise"),
    "raise_all": STRICT,
    "return_unexpected": Strictness("raise", "log"),
    "return_all": Strictness("log", "log"),
    "ignore_all": Strictness("ignore", "ignore"),
}

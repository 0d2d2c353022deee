"""The faults of planning; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

PLANNING_RULES: dict[str, Rule] = {
    "MC1425": Rule(
        "Goodput needs the number of GPUs",
        "A job of more GPUs is interrupted more often.",
        "Give --gpus, or --published with a run whose number is known.",
    ),
    "MC1426": Rule(
        "--interval-seconds must not be shorter than --write-seconds",
        "A checkpoint would begin before the one before it is written.",
        "Give a longer interval.",
    ),
}

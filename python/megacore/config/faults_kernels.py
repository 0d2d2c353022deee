"""The faults of kernels and of training in low precision; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

KERNEL_RULES: dict[str, Rule] = {
    "MC1230": Rule(
        "--cross-entropy-fusion-impl linear does not go together with this setting",
        "Losses are computed from hidden states, and the logits never exist: nothing can be done "
        "to them in between, and the models that train on other outputs have no such loss.",
        "Remove one of the two.",
    ),
}

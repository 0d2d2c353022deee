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
    "MC1231": Rule(
        "--fp8-format needs a checkpoint format that holds its scales",
        "Megatron-LM's `torch` format has no place for them, and a run that goes on without them "
        "is another run.",
        "Leave `--ckpt-format torch` out.",
    ),
}

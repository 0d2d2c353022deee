"""The faults of encoders and encoder-decoders; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

ENCODER_RULES: dict[str, Rule] = {
    "MC1320": Rule(
        "A setting belongs to another kind of model",
        "The setting says something about a part that this kind of model does not have; going on "
        "without it would be another run than the one asked for.",
        "Leave the setting out, or train the kind of model that has it: pretrain_gpt.py, "
        "pretrain_bert.py, pretrain_t5.py, or --model-family.",
    ),
}

"""The faults of planning; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

PLANNING_RULES: dict[str, Rule] = {
    "MC1420": Rule(
        "The hardware comes from --gpu or from --hardware-profile",
        "They name two different sets of constants.",
        "Leave one of them out.",
    ),
    "MC1421": Rule(
        "Pictures are .svg or .png files",
        "The kind of picture follows from the name of the file.",
        "Give a name with one of these endings.",
    ),
    "MC1422": Rule(
        "A plan needs the size of the vocabulary",
        "The output layer is a large part of a step, and its logits of the memory.",
        "Give --vocab-size, or a tokenizer whose files are there.",
    ),
    "MC1423": Rule(
        "Layers do not divide into virtual stages of this size",
        "Every rank of the pipeline holds the same number of stages, each with as many layers as "
        "the flag says.",
        "Correct the flag and give --pipeline-model-parallel-size too, or leave both out.",
    ),
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

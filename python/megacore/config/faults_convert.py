"""The faults of converting checkpoints; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

CONVERT_RULES: dict[str, Rule] = {
    "MC1001": Rule(
        "The loader or saver has no such flag",
        "Every loader and saver has flags of its own; one that nothing reads would be ignored "
        "without a word.",
        "Remove the flag, or choose the loader or saver that has it.",
    ),
    "MC1002": Rule(
        "This kind of model cannot be converted yet",
        "Dense GPT, BERT and T5 models can. Mixtures of experts will come with the models.",
        "There is nothing to change; convert it with another program.",
    ),
    "MC1003": Rule(
        "--verify-prompt and --verify-tokens both name the prompt",
        "One is text for the tokenizer, the other its result.",
        "Keep one of them.",
    ),
    "MC1004": Rule(
        "--verify-prompt and --verify-tokens need --verify",
        "Nothing is verified without it.",
        "Add `--verify`, or remove the prompt.",
    ),
    "MC1005": Rule(
        "The target format has no such flag",
        "Layouts of processes belong to Megatron-Core and legacy checkpoints, the size of shards "
        "and the family to Hugging Face models.",
        "Remove the flag, or choose another `--to`.",
    ),
    "MC1006": Rule(
        "--vocab-file does not fit the true vocabulary size",
        "`--true-vocab-size` and the number of entries of the file differ.",
        "Correct one of them, or leave one out.",
    ),
    "MC1007": Rule(
        "--tokenizer-model and --vocab-file both name the tokenizer",
        "One tokenizer travels along with a model.",
        "Keep one of them.",
    ),
}

"""The faults of finetuning; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

FINETUNE_RULES: dict[str, Rule] = {
    "MC1101": Rule(
        "A flag of low-rank adapters needs --lora-rank",
        "Without a rank there are no adapters: the whole model would be trained.",
        "Give `--lora-rank R`, or remove the flag.",
    ),
    "MC1102": Rule(
        "--lora-targets names no layer that can have an adapter",
        "Adapters belong to the linear layers of attention and of the MLP.",
        "Name some of `linear_qkv`, `linear_proj`, `linear_fc1`, `linear_fc2`.",
    ),
    "MC1103": Rule(
        "--lora-rank needs a model to adapt",
        "Adapters of random weights are worth nothing: the base model is read from a checkpoint.",
        "Name it with `--pretrained-checkpoint DIR` (and give the directory of the adapters as "
        "`--load` and `--save`), or with `--load DIR`.",
    ),
    "MC1104": Rule(
        "--lora-rank does not go together with this setting",
        "Every pipeline stage must have something to train, and a process that has only the "
        "embedding has no adapter.",
        "Remove one of the two.",
    ),
    "MC1105": Rule(
        "megacore lora needs something to do, and its paths",
        "Merging needs the base model, the adapters and a new directory; export and import need "
        "the adapters and a new directory, import the base model too.",
        "`megacore lora merge BASE ADAPTERS OUT`, `megacore lora export ADAPTERS OUT`, or "
        "`megacore lora import PEFT BASE OUT`.",
    ),
    "MC1106": Rule(
        "The flag belongs to another action of megacore lora",
        "It would be ignored without a word.",
        "Remove it, or choose the action that has it.",
    ),
    "MC1111": Rule(
        "The flag needs --sft",
        "It says how conversations become training data; without `--sft` there are none.",
        "Add `--sft`, or remove the flag.",
    ),
    "MC1112": Rule(
        "--sft needs a Hugging Face tokenizer",
        "A conversation is rendered by the chat template that comes with the tokenizer, and its "
        "answers are found again among the tokens by the characters that these stand for.",
        "Give `--tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR`, where DIR has "
        "`tokenizer.json` and `tokenizer_config.json`.",
    ),
    "MC1113": Rule(
        "--sft does not go together with this flag",
        "Packed conversations always have positions and attention of their own, loss is on the "
        "answers, and files are not mixed by weights.",
        "Remove the flag.",
    ),
    "MC1114": Rule(
        "Files of conversations have no weights",
        "All conversations are used once in each pass.",
        "Give the paths alone; name a file twice to use it twice as often.",
    ),
}

"""The faults of evaluation tasks; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

EVALUATION_RULES: dict[str, Rule] = {
    "MC1340": Rule(
        "This task scores exactly one --valid-data file",
        "WIKITEXT103 and LAMBADA are one file each; several would need several results.",
        "Give one file, and run the command once per file.",
    ),
    "MC1341": Rule(
        "The command line describes another model than the checkpoint holds",
        "Zero-shot tasks take the architecture from the checkpoint. Flags that say something else "
        "about it would be ignored, or the wrong checkpoint was named.",
        "Correct the flags or leave them out.",
    ),
    "MC1342": Rule(
        "Zero-shot tasks run with data parallelism only",
        "Every process holds the whole model and scores a share of the samples. Checkpoints of any "
        "layout of processes can be read.",
        "Leave the tensor, pipeline and context parallel sizes at 1.",
    ),
    "MC1343": Rule(
        "--overlapping-eval must not be greater than --seq-length",
        "It is the number of tokens from one window to the next; with larger steps tokens between "
        "two windows would never be scored.",
        "Give at most the length of the windows.",
    ),
    "MC1344": Rule(
        "The length and the data of a finetuning come from the task's flags",
        "The number of iterations follows from `--epochs`, the examples and the batch size, which "
        "stays the same.",
        "Remove the flag; use `--epochs`, `--train-data` and `--valid-data`.",
    ),
    "MC1345": Rule(
        "Finetuning needs the pooler of BERT",
        "The heads of the tasks read the pooled first token, which a BERT without binary head does "
        "not have, nor token types to tell the two texts apart.",
        "Use a checkpoint that was trained with the binary head.",
    ),
    "MC1346": Rule(
        "Finetuning tasks run without pipeline parallelism",
        "Tensor, sequence and data parallelism work, and checkpoints of any layout can be read.",
        "Use `--pipeline-model-parallel-size 1`.",
    ),
    "MC1347": Rule(
        "Retrieval runs in one process",
        "The index is searched as a whole, and indexing goes on where an earlier run was.",
        "Start it without a launcher of several processes.",
    ),
    "MC1348": Rule(
        "Two encoders are trained with data parallelism only",
        "Towers are not divided among processes.",
        "Leave the tensor, pipeline and context parallel sizes at 1.",
    ),
}

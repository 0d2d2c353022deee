"""The faults of data of sentences (BERT, T5, inverse cloze task); part of `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

SENTENCE_RULES: dict[str, Rule] = {
    "MC1301": Rule(
        "A flag of documents does not go together with samples of sentences",
        "Samples of BERT, T5 and the inverse cloze task lie within one document and have no "
        "end-of-document token.",
        "Remove the flag.",
    ),
    "MC1302": Rule(
        "--decoder-seq-length without a decoder",
        "An encoder has one sequence, whose length is `--seq-length`.",
        "Remove the flag, or train an encoder-decoder model with `pretrain_t5.py`.",
    ),
    "MC1303": Rule(
        "The sequence is too short for a sample",
        "Beside its special tokens a sample needs room for at least two tokens.",
        "Give a longer `--seq-length`.",
    ),
    "MC1304": Rule(
        "Too few sentinel tokens",
        "Each masked run of words becomes a sentinel of its own; with fewer sentinels than the "
        "runs of an average text, less than `--mask-prob` would be masked.",
        "Give `--vocab-extra-ids 100`. The sentinels are appended to the vocabulary, so the "
        "dataset need not be prepared again.",
    ),
    "MC1305": Rule(
        "The decoder's sequence is too short for what is masked",
        "The decoder writes every masked token and a sentinel for every run of them.",
        "Give a longer `--decoder-seq-length`, a shorter `--encoder-seq-length`, or a smaller "
        "`--mask-prob`.",
    ),
    "MC1306": Rule(
        "--decoder-seq-length exceeds --max-position-embeddings",
        "Positions beyond the table of embeddings have none.",
        "Give a shorter `--decoder-seq-length` or more `--max-position-embeddings`.",
    ),
    "MC1307": Rule(
        "--titles-data-path belongs to one dataset",
        "It has one title for each document of the dataset with the text, so a blend, or a dataset "
        "per split, cannot share it.",
        "Give one prefix as `--data-path`, and divide it with `--split`.",
    ),
}

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
    "MC1321": Rule(
        "This kind of model cannot do this",
        "The setting works for other kinds of models only. The message says why.",
        "Leave the setting out.",
    ),
    "MC1322": Rule(
        "The tensors of a sequence are cut among processes that do not divide it",
        "With sequence parallelism every process has an equal part of the sequence, of the "
        "decoder's as of the encoder's.",
        "Choose another --decoder-seq-length or --tensor-model-parallel-size.",
    ),
    "MC1323": Rule(
        "The layers of encoder and decoder cannot be divided among these pipeline stages",
        "The stages before --pipeline-model-parallel-split-rank hold the encoder, equally many "
        "layers each, the others the decoder. Without it all layers together, first those of the "
        "encoder, are divided equally.",
        "Choose numbers of layers that the numbers of stages divide.",
    ),
}

"""Cutting a model into pipeline stages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from megacore.errors import UsageError
from megacore.models.staged import StagedModel

WORD_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class StageLayers:
    """What one stage holds.

    Attributes:
        first: Its first layer.
        last: One past its last layer.
        has_embedding: It begins the model.
        has_output: It ends the model.
    """

    first: int
    last: int
    has_embedding: bool
    has_output: bool


def divide_layers(
    num_layers: int,
    num_stages: int,
    *,
    first_stage: int | None = None,
    last_stage: int | None = None,
    standalone_embedding: bool = False,
) -> list[StageLayers]:
    """Which stage holds which layers, all of them equally many but for the named exceptions.

    Args:
        num_layers: Layers of the model.
        num_stages: Stages, over all ranks and virtual stages.
        first_stage: Layers of the first stage, when it differs from the others.
        last_stage: Layers of the last stage, when it differs from the others.
        standalone_embedding: The first stage holds the embedding alone.

    Raises:
        UsageError: The layers cannot be divided this way.
    """
    if standalone_embedding:
        first_stage = 0
    if num_stages == 1:
        counts = [num_layers]
    else:
        fixed = {0: first_stage, num_stages - 1: last_stage}
        given = {stage: count for stage, count in fixed.items() if count is not None}
        rest, others = num_layers - sum(given.values()), num_stages - len(given)
        uneven = rest % others != 0 if others else rest != 0
        if rest < 0 or uneven:
            raise UsageError(
                f"{num_layers} layers cannot be divided among {num_stages} pipeline stages"
                + (f" of which some have {sorted(given.values())} layers" if given else "")
            )
        counts = [given.get(stage, rest // others if others else 0) for stage in range(num_stages)]
    stages, first = [], 0
    for stage, count in enumerate(counts):
        stages.append(
            StageLayers(
                first=first,
                last=first + count,
                has_embedding=stage == 0,
                has_output=stage == num_stages - 1,
            )
        )
        first += count
    return stages


def divide_stacks(num_layers: tuple[int, int], num_stages: int, *, split: int) -> list[StageLayers]:
    """Which stage holds which layers of an encoder and a decoder, numbered through both.

    Args:
        num_layers: Of the encoder and of the decoder.
        num_stages: Stages.
        split: The first so many hold the encoder, the others the decoder.

    Raises:
        UsageError: The layers of a stack cannot be divided equally.
    """
    encoder, decoder = num_layers
    first = divide_layers(encoder, split)
    second = divide_layers(decoder, num_stages - split)
    return [
        *(replace(stage, has_output=False) for stage in first),
        *(
            replace(
                stage,
                first=encoder + stage.first,
                last=encoder + stage.last,
                has_embedding=False,
            )
            for stage in second
        ),
    ]


def cut_stage(model: StagedModel, layers: StageLayers) -> None:
    """Take away from a whole model, in place, what another stage holds.

    Layers are numbered through all stacks of the model; the norm behind a stack goes with its last
    layer. A last stage whose output layer is tied to the word embedding of another stage gets a
    weight of its own, to be kept equal to that one.

    Args:
        model: Whole model, on the meta device.
        layers: What is kept. Parameters keep their names.
    """
    first = 0
    blocks = list(model.blocks.values())
    for block in blocks:
        end = first + len(block.layers)
        for name in list(block.layers):
            if not layers.first <= first + int(name) < layers.last:
                del block.layers[name]
        has_norm = layers.has_output if block is blocks[-1] else layers.first < end <= layers.last
        if not has_norm:
            block.final_layernorm = None
        first = end
    if layers.has_output:
        output, embedding = model.output_layer, model.embedding
        if not layers.has_embedding and output is not None and output.weight is None:
            assert embedding is not None
            original = embedding.word_embeddings.weight
            output.weight = nn.Parameter(
                original.detach().clone(), requires_grad=original.requires_grad
            )
    else:
        model.drop_end()
    if not layers.has_embedding:
        model.embedding = None

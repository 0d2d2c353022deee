"""The part of a model that one process of a run holds: cut, initialised, and with its layouts.

The whole model is built on the meta device, where it costs nothing; stages are cut out of it; then
the tensors that stay are made and filled. Parameters keep their names, and their initial values
are those of the whole model whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.layout import ParamLayout
from megacore.parallel.stages import OUTPUT_WEIGHT, WORD_EMBEDDING, cut_stage, divide_layers


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Which stages of the model a process holds.

    Attributes:
        num_stages: Stages that the layers are divided into.
        local: Stage of the schedule -> stage of the model, those on this process, in order. The
            two differ only where a schedule runs through the model in more than one chain.
    """

    num_stages: int = 1
    local: Mapping[int, int]


WHOLE_MODEL = StagePlan(local={0: 0})


@dataclass(frozen=True, kw_only=True)
class ParallelModel:
    """The part of a model that this process holds.

    Attributes:
        stages: Stage of the schedule -> its part of the model, in order.
        layouts: Parameter name -> how it is cut.
        has_tied_copies: The output layer of the last stage is a copy of the word embedding,
            which another process has.
    """

    stages: Mapping[int, GPTModel]
    layouts: Mapping[str, ParamLayout]
    has_tied_copies: bool = False

    def chunks(self) -> list[dict[str, nn.Parameter]]:
        """The parameters of each stage by name; one that two stages share is in the first."""
        seen: set[int] = set()
        chunks = []
        for stage in self.stages.values():
            chunk = {n: p for n, p in stage.named_parameters() if id(p) not in seen}
            seen.update(map(id, chunk.values()))
            chunks.append(chunk)
        return chunks

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, each once."""
        for chunk in self.chunks():
            yield from chunk.items()

    def train(self, mode: bool = True) -> None:
        """Training mode of every stage."""
        for stage in self.stages.values():
            stage.train(mode)

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters on this process."""
        return sum(parameter.numel() for _, parameter in self.named_parameters())


def build_parallel_model(
    config: ModelConfig,
    *,
    parallel: ParallelConfig,
    groups: ParallelGroups,
    plan: StagePlan = WHOLE_MODEL,
    padded_vocab_size: int,
    recompute: RecomputeConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    fp16_lm_cross_entropy: bool = False,
) -> ParallelModel:
    """This process's part of a model, with initial weights.

    Args:
        config: Architecture; resolved.
        parallel: Degrees and kinds of parallelism.
        groups: The groups of this process.
        plan: Stages of this process.
        padded_vocab_size: Rows of the word embedding of the whole model.
        recompute: Which activations are recomputed in backward.
        dtype: Dtype of parameters and activations.
        device: Where the parameters go.
        seed: Base seed of the initial weights.
        fp16_lm_cross_entropy: Compute the loss of float16 logits in float16.

    Raises:
        MegacoreError: The model cannot be cut like this.
    """
    division = divide_layers(config.num_layers or 0, plan.num_stages)
    stages: dict[int, GPTModel] = {}
    layouts: dict[str, ParamLayout] = {}
    for number, model_stage in plan.local.items():
        stage = GPTModel(
            config,
            padded_vocab_size=padded_vocab_size,
            recompute=recompute,
            dtype=dtype,
            device="meta",
            fp16_lm_cross_entropy=fp16_lm_cross_entropy,
        )
        cut_stage(stage, division[model_stage])
        layouts |= whole_layouts(stage)
        stages[number] = stage.to_empty(device=device)
        init_weights(stage, config, seed=seed)
    _share_embedding(stages, layouts)
    tied = not config.untie_embeddings_and_output_weights
    return ParallelModel(
        stages=stages, layouts=layouts, has_tied_copies=tied and plan.num_stages > 1
    )


def whole_layouts(stage: GPTModel) -> dict[str, ParamLayout]:
    """Layouts of parameters that tensor parallelism does not cut."""
    output = stage.output_layer
    has_copy = output is not None and output.tied and output.weight is not None
    layouts = {}
    for name, parameter in stage.named_parameters():
        is_copy = has_copy and name == OUTPUT_WEIGHT
        layouts[name] = ParamLayout(
            name=WORD_EMBEDDING if is_copy else name,
            full_shape=tuple(parameter.shape),
            is_copy=is_copy,
        )
    return layouts


def _share_embedding(stages: Mapping[int, GPTModel], layouts: dict[str, ParamLayout]) -> None:
    """Makes a tied output layer whose embedding is on this process use that very parameter."""
    embedding = next((s.embedding for s in stages.values() if s.embedding is not None), None)
    for stage in stages.values():
        output = stage.output_layer
        if embedding is None or stage.embedding is not None or output is None or not output.tied:
            continue
        output.weight = embedding.word_embeddings.weight
        layouts.pop(OUTPUT_WEIGHT)

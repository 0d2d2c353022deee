"""The part of a model that one process of a run holds: cut, initialised, and with its layouts.

The whole model is built on the meta device, where it costs nothing; stages are cut out of it, then
weights, then sequences; then the tensors that stay are made and filled. Parameters keep their
names, and their initial values are those of the whole model whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from megacore.models.adapted import add_adapters
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.models.lora import LoraConfig
from megacore.models.staged import StagedModel
from megacore.parallel.config import ParallelConfig
from megacore.parallel.context import apply_context_parallel
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.layout import ParamLayout
from megacore.parallel.linear import Overlap
from megacore.parallel.pipeline_plan import WHOLE_MODEL, StagePlan
from megacore.parallel.random_streams import RandomStream
from megacore.parallel.recompute import apply_random_streams
from megacore.parallel.stages import StageLayers, cut_stage, divide_layers, divide_stacks
from megacore.parallel.tensor import apply_tensor_parallel
from megacore.parallel.weight_grad import WeightGradStore


class MakeModel(Protocol):
    """Makes a whole model of some architecture; see `models.gpt.GPTModel` for the arguments."""

    def __call__(
        self,
        config: ModelConfig,
        *,
        padded_vocab_size: int,
        recompute: RecomputeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        fp16_lm_cross_entropy: bool = False,
    ) -> StagedModel:
        """The model, with parameters that are not initialised."""


@dataclass(frozen=True, kw_only=True)
class ParallelModel:
    """The part of a model that this process holds.

    Attributes:
        stages: Stage of the schedule -> its part of the model, in order.
        layouts: Parameter name -> how it is cut.
        has_tied_copies: The output layer of the last stage is a copy of the word embedding,
            which another process has.
        plan: Stages of this process.
        store: Where linear layers leave weight gradients for later, when the schedule wants that.
        is_adapted: Only the adapters are trained; the rest is a base model that others have.
    """

    stages: Mapping[int, StagedModel]
    layouts: Mapping[str, ParamLayout]
    has_tied_copies: bool = False
    plan: StagePlan = WHOLE_MODEL
    store: WeightGradStore | None = None
    is_adapted: bool = False

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters; one that two stages share comes once, by its first name."""
        seen: set[int] = set()
        for stage in self.stages.values():
            for name, parameter in stage.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield name, parameter

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
    make: MakeModel = GPTModel,
    parallel: ParallelConfig,
    groups: ParallelGroups,
    plan: StagePlan = WHOLE_MODEL,
    padded_vocab_size: int,
    recompute: RecomputeConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    fp16_lm_cross_entropy: bool = False,
    stream: RandomStream | None = None,
    lora: LoraConfig | None = None,
) -> ParallelModel:
    """This process's part of a model, with initial weights.

    Args:
        config: Architecture; resolved.
        make: Makes the whole model.
        parallel: Degrees and kinds of parallelism; resolved.
        groups: The groups of this process.
        plan: Stages of this process.
        padded_vocab_size: Rows of the word embedding of the whole model.
        recompute: Which activations are recomputed in backward.
        dtype: Dtype of parameters and activations.
        device: Where the parameters go; "meta" leaves them without memory and values.
        seed: Base seed of the initial weights.
        fp16_lm_cross_entropy: Compute the loss of float16 logits in float16.
        stream: What the tensor-parallel processes draw for themselves; None where there is one.
        lora: Adapters, which are then all that is trained; None for none.

    Raises:
        MegacoreError: The model cannot be cut like this; all that is wrong with a step of it.
    """
    store = WeightGradStore() if plan.defers_weight_grads else None
    stages: dict[int, StagedModel] = {}
    layouts: dict[str, ParamLayout] = {}
    for number, layers in stage_layers(config, parallel, plan).items():
        stage = make(
            config,
            padded_vocab_size=padded_vocab_size,
            recompute=recompute,
            dtype=dtype,
            device="meta",
            fp16_lm_cross_entropy=fp16_lm_cross_entropy,
        )
        if lora is not None and lora.is_on:
            add_adapters(stage, lora)
        cut_stage(stage, layers)
        stages[number] = stage
    shared = _tied_here(stages)
    for stage in stages.values():
        if stage in shared:
            # Not a copy: it will use the parameter of the embedding itself.
            assert stage.output_layer is not None
            stage.output_layer.weight = None
        layouts |= apply_tensor_parallel(
            stage,
            groups.tp,
            sequence_parallel=parallel.sequence_parallel,
            overlap=Overlap.from_flags(parallel),
            store=store,
        )
        apply_context_parallel(stage, groups.cp, comm_type=parallel.cp_comm_type)
        if stream is not None:
            slices = groups.tp if parallel.distribute_saved_activations else None
            apply_random_streams(
                stage, stream, every_dropout=parallel.sequence_parallel, slices=slices
            )
        if device.type != "meta":
            stage.to_empty(device=device)
            init_weights(stage, config, seed=seed, cuts=layouts)
    for stage, embedding in shared.items():
        assert stage.output_layer is not None
        assert embedding.embedding is not None
        stage.output_layer.weight = embedding.embedding.word_embeddings.weight
    tied = not config.untie_embeddings_and_output_weights
    return ParallelModel(
        stages=stages,
        layouts=layouts,
        has_tied_copies=tied and not plan.ends_where_it_begins,
        plan=plan,
        store=store,
        is_adapted=lora is not None and lora.is_on,
    )


def stage_layers(
    config: ModelConfig, parallel: ParallelConfig, plan: StagePlan
) -> dict[int, StageLayers]:
    """Stage of the schedule -> what it holds, of a process.

    Args:
        config: Architecture; resolved.
        parallel: Says which stages have other numbers of layers; resolved.
        plan: Stages of the process.

    Raises:
        UsageError: The layers cannot be divided like this.
    """
    split = parallel.pipeline_model_parallel_split_rank
    if split is not None and plan.num_stages > 1:
        division = divide_stacks(
            (config.num_layers or 0, config.decoder_num_layers or 0), plan.num_stages, split=split
        )
        return {number: division[stage] for number, stage in plan.local.items()}
    division = divide_layers(
        config.total_depth or 0,
        plan.num_stages,
        first_stage=parallel.decoder_first_pipeline_num_layers,
        last_stage=parallel.decoder_last_pipeline_num_layers,
        standalone_embedding=parallel.standalone_embedding_stage,
    )
    return {number: division[stage] for number, stage in plan.local.items()}


def _tied_here(stages: Mapping[int, StagedModel]) -> dict[StagedModel, StagedModel]:
    """Stage with a tied output layer -> the other stage on this process that has its embedding."""
    first = next((stage for stage in stages.values() if stage.embedding is not None), None)
    if first is None:
        return {}
    return {
        stage: first
        for stage in stages.values()
        if stage is not first and stage.output_layer is not None and stage.output_layer.tied
    }

"""A run as the files of a `torch` checkpoint: what each process gives to Megatron-LM's layout.

The first of the processes with equal parameters writes a file for all of them. A pipeline whose
stages lie as Megatron-LM places them has a file per rank; any other one (V-shaped schedules, for
example) a file per stage, as if every stage had a rank of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megacore.checkpoint import gather_rng
from megacore.checkpoint.megatron.arguments import namespace
from megacore.checkpoint.megatron.buffers import default_bucket_size
from megacore.checkpoint.megatron.checkpoint import OWN
from megacore.checkpoint.megatron.loading import RANKS
from megacore.checkpoint.megatron.names import OUTPUT_WEIGHT, WORD_EMBEDDING, layer_of
from megacore.checkpoint.megatron.rank_files import BUFFER_FILE, MODEL_FILE, Place
from megacore.checkpoint.megatron.rank_state import (
    CHECKPOINT_VERSION,
    GroupConstants,
    RankParam,
    RankStage,
    distributed_optimizer,
    flat_buffers,
    grouped_optimizer,
    model_states,
)
from megacore.checkpoint.megatron.run_values import stored_rng, stored_scale, stored_schedule
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.random_streams import RandomStream
from megacore.training.checkpoint_parts import OPTIMIZER, GroupWriters
from megacore.training.learner import Learner

STREAM = "tensor_parallel."
_COUNTERS = ("consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")


class RankFiles:
    """Collects the files that this process writes; all processes of the run take part.

    Args:
        learner: Model, optimizer and schedule.
        groups: The groups of this process.
        device: Where the groups' backends want their tensors.
    """

    def __init__(self, learner: Learner, groups: ParallelGroups, device: torch.device) -> None:
        self._learner = learner
        self._groups = groups
        self._device = device
        plan = learner.model.plan
        placement = GroupWriters(groups.pp, device).exchange(list(plan.local))
        self._num_stages = plan.num_stages
        self._per_rank = len(plan.local) if _is_usual(placement, plan.num_stages) else 1

    @property
    def pipeline_size(self) -> int:
        """Ranks of the pipeline by the files, which may be more than there are processes."""
        return self._num_stages // self._per_rank

    def collect(
        self,
        iteration: int,
        values: Mapping[str, Any],
        rng: list[dict[str, Any]] | None,
    ) -> dict[str, Any]:
        """Name of a file inside the checkpoint -> what it holds; the tensors are not copies.

        Args:
            iteration: Iterations done.
            values: The values of a checkpoint of this run.
            rng: What `rng_entries` gave, or None when random states are left out.
        """
        self._learner.optimizer.finish_params()
        states = self._optimizer_states() if OPTIMIZER in values else {}
        if not self._groups.dp_cp.is_first:
            return {}
        numbers = sorted(self._learner.model.stages)
        if self._per_rank > 1:
            ranks = {self._groups.pp.rank: numbers}
        else:
            ranks = {number: [number] for number in numbers}
        files: dict[str, Any] = {}
        for pipeline, own in ranks.items():
            place = Place(self._groups.tp.rank, pipeline)
            folder = place.directory(pipeline_size=self.pipeline_size)
            stages = [self._stage(number, states) for number in own]
            content: dict[str, Any] = {
                "args": namespace(self._arguments(values, iteration)),
                "checkpoint_version": CHECKPOINT_VERSION,
                "iteration": iteration,
                **model_states(stages),
                "num_floating_point_operations_so_far": values["counters"][
                    "floating_point_operations"
                ],
                OWN: json.dumps(values, allow_nan=False),
            }
            if OPTIMIZER in values:
                content |= self._optimizer(values, stages)
                if self._is_distributed(values):
                    files[f"{folder}/{BUFFER_FILE}"] = self._buffers(values, pipeline, stages)
            if rng is not None:
                content["rng_state"] = rng
            files[f"{folder}/{MODEL_FILE}"] = content
        return files

    def _stage(self, number: int, states: Mapping[str, Mapping[str, Tensor]]) -> RankStage:
        model = self._learner.model
        stage = model.stages[number]
        first_names = {id(parameter): name for name, parameter in model.named_parameters()}
        tied = stage.output_layer is None or stage.output_layer.tied
        params = [
            RankParam(
                name,
                parameter.detach(),
                states.get(first_names[id(parameter)], {}),
                is_shared=tied and self._num_stages > 1 and name in (WORD_EMBEDDING, OUTPUT_WEIGHT),
            )
            for name, parameter in stage.named_parameters(remove_duplicate=False)
        ]
        layers = [layer for param in params if (layer := layer_of(param.name)) is not None]
        return RankStage.of(min(layers, default=0), params)

    def _optimizer_states(self) -> dict[str, dict[str, Tensor]]:
        """Parameter -> kind -> whole state, on the processes that write it."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._learner.optimizer.gather_state():
            kind, _, parameter = name.partition(".")
            if self._groups.dp_cp.is_first:
                found.setdefault(parameter, {})[kind] = tensor.detach().to("cpu", copy=True)
        return found

    @staticmethod
    def _is_distributed(values: Mapping[str, Any]) -> bool:
        args = values["args"]
        sharded = args["use_distributed_optimizer"]
        sharded = sharded or args["data_parallel_sharding_strategy"] != "no_shard"
        return bool(sharded and args["optimizer"] == "adam")

    def _optimizer(self, values: Mapping[str, Any], stages: list[RankStage]) -> dict[str, Any]:
        constants = self._constants(values)
        scale = values[OPTIMIZER]["loss_scale"]
        scaler = stored_scale(scale) if "growth_tracker" in scale else None
        make = distributed_optimizer if self._is_distributed(values) else grouped_optimizer
        return {
            OPTIMIZER: make(stages, constants, scaler),
            "opt_param_scheduler": stored_schedule(values["scheduler"])[0],
        }

    def _constants(self, values: Mapping[str, Any]) -> GroupConstants:
        rates, curve, args = self._learner.scheduler.rates(), values["scheduler"], values["args"]
        more: dict[str, Any] = {"momentum": args["sgd_momentum"]}
        if args["optimizer"] == "adam":
            betas = (args["adam_beta1"], args["adam_beta2"])
            more = {"bias_correction": True, "betas": betas, "eps": args["adam_eps"]}
        return GroupConstants(
            lr=rates.lr,
            weight_decay=rates.weight_decay,
            max_lr=curve["max_lr"],
            min_lr=curve["min_lr"],
            decoupled_lr=rates.decoupled_lr,
            decoupled_max_lr=curve["decoupled_max_lr"],
            decoupled_min_lr=curve["decoupled_min_lr"],
            step=values[OPTIMIZER]["step"],
            more=more,
        )

    def _buffers(
        self, values: Mapping[str, Any], pipeline: int, stages: list[RankStage]
    ) -> dict[Any, Any]:
        args, replicas = values["args"], self._groups.dp.size
        sizes: list[int | None] = [None] * len(stages)
        if args["overlap_grad_reduce"] and pipeline == 0:
            # Behind the first stage of the pipeline Megatron-LM does not overlap.
            sizes[0] = args["ddp_bucket_size"] or default_bucket_size(replicas)
        in_fp32 = args["accumulate_allreduce_grads_in_fp32"]
        grads = {
            torch.bfloat16: torch.float32,
            torch.float16: torch.float32 if in_fp32 else torch.float16,
        }
        return flat_buffers(stages, grads, shards=self._groups.dp_cp.size, bucket_sizes=sizes)

    def _arguments(self, values: Mapping[str, Any], iteration: int) -> dict[str, Any]:
        """The settings as Megatron-LM names them, with what it derives from them."""
        groups, args, virtual = self._groups, values["args"], self._per_rank
        dtype = next(parameter for _, parameter in self._learner.model.named_parameters()).dtype
        return {
            **args,
            **{name: values["counters"][name] for name in _COUNTERS},
            "iteration": iteration,
            "params_dtype": dtype,
            "world_size": groups.world_size,
            "data_parallel_size": groups.dp.size,
            "pipeline_model_parallel_size": self.pipeline_size,
            "transformer_pipeline_model_parallel_size": self.pipeline_size,
            "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
            "use_distributed_optimizer": self._is_distributed(values),
            "use_legacy_models": False,
            "transformer_impl": "transformer_engine",
            "ckpt_format": "torch",
        }


def _is_usual(placement: list[list[int]], num_stages: int) -> bool:
    """Whether rank r of n has the stages r, r + n, r + 2 n and so on."""
    size = len(placement)
    return all(own == list(range(rank, num_stages, size)) for rank, own in enumerate(placement))


def rng_entries(
    groups: ParallelGroups, stream: RandomStream | None, device: torch.device
) -> list[dict[str, Any]]:
    """Random states of the processes with this part of the model; one when all are alike."""
    tensors, values = gather_rng()
    if stream is not None:
        tensors |= {STREAM + name: state for name, state in stream.state_tensors().items()}
    writers = GroupWriters(groups.dp_cp, device)
    text = json.dumps([{name: state.tolist() for name, state in tensors.items()}, values])
    digests = writers.exchange(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        entries = [stored_rng(tensors, values)]
        owners = [list(groups.dp_cp.ranks)]
    else:
        entries = []
        for states, own in map(json.loads, writers.exchange(text)):
            made = {n: torch.tensor(s, dtype=tensors[n].dtype) for n, s in states.items()}
            entries.append(stored_rng(made, own))
        owners = [[rank] for rank in groups.dp_cp.ranks]
    if groups.world.size > 1:
        for entry, ranks in zip(entries, owners, strict=True):
            entry[RANKS] = ranks
    return entries

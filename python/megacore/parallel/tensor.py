"""Tensor and sequence parallelism, applied to a finished model by a table of its layers.

Each process of a group gets a part of the weights: `splits.SPLITS` says of which layer what. The
layers stay what they are; their products, lookups and loss are replaced by those of `linear` and
`vocabulary`, which communicate. With sequence parallelism the residual stream between the pairs of
layers is split along the sequence, so norms and dropout work on [B, S / size, H].

Sources: Shoeybi et al., "Megatron-LM" (2019); Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.cross_entropy import TokenLoss
from megacore.layers.embedding import Table, lookup
from megacore.layers.linear import Linear
from megacore.models.staged import OutputLayer, StagedModel
from megacore.parallel.collectives import divided, join_sequence
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout
from megacore.parallel.linear import OVERLAP, ColumnProduct, Overlap, RowProduct
from megacore.parallel.pieces import SEQUENCE
from megacore.parallel.splits import SPLITS, LayerSplit, Split
from megacore.parallel.stages import WORD_EMBEDDING
from megacore.parallel.vocabulary import SplitLinearTokenLoss, SplitLookup, SplitTokenLoss
from megacore.parallel.weight_grad import WeightGradStore, linear


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same for all layers of a model."""

    group: Group
    sequence: bool
    overlap: Overlap
    store: WeightGradStore | None


def apply_tensor_parallel(
    model: StagedModel,
    group: Group,
    *,
    sequence_parallel: bool = False,
    overlap: Overlap = OVERLAP,
    store: WeightGradStore | None = None,
    splits: Sequence[LayerSplit] = SPLITS,
) -> dict[str, ParamLayout]:
    """Give each process of `group` its part of the weights of a model, in place.

    Without `sequence_parallel` every process works on all tokens; with it, on S / size of them
    between the pairs of layers, and a stage takes and returns hidden states [B, S / size, H].

    Args:
        model: Whole model or stage, on the meta device.
        group: The processes; with one, nothing is cut.
        sequence_parallel: Split the residual stream along the sequence.
        overlap: Which communication runs beside which product.
        store: Where linear layers leave weight gradients for later while it is deferring.
        splits: What happens to each layer.

    Returns:
        Parameter name -> how it was cut, for all parameters.

    Raises:
        UsageError: A dimension cannot be divided, or a layer is in no row of the table. All
            faults at once.
    """
    plan = _Plan(
        group=group,
        sequence=sequence_parallel and group.size > 1,
        overlap=overlap,
        store=store,
    )
    gated = model.spec.gated_mlp
    # What works on whole sequences again behind the last layer.
    end_plan = plan if model.join_sequence is None else replace(plan, sequence=False)
    owners = {name: module for name, module in model.named_modules() if module._parameters}
    faults, layouts = list(_head_faults(model, group)), {}
    for name, module in owners.items():
        row = next((row for row in splits if fnmatchcase(name, row.layers)), None)
        if row is None:
            faults.append(f"{name} is in no row of the table of splits")
            continue
        in_front = name.startswith(("embedding.", *(f"{block}." for block in model.blocks)))
        own_plan = plan if in_front else end_plan
        for kind, parameter in module.named_parameters(recurse=False):
            layout = _layout(f"{name}.{kind}", parameter, row, own_plan, gated=gated)
            layouts[layout.name] = layout
            faults += _division_faults(layout)
        if group.size > 1 or store is not None:
            _replace(module, row.split, own_plan)
    if faults:
        raise UsageError("the model cannot be split:\n" + "\n".join(f"  {f}" for f in faults))
    for name, layout in layouts.items():
        _cut(owners[name.rpartition(".")[0]], name.rpartition(".")[2], layout)
    output = model.output_layer
    if output is not None and output.tied and output.weight is not None:
        name = next(name for name, module in owners.items() if module is output) + ".weight"
        layouts[name] = replace(layouts[name], name=WORD_EMBEDDING, is_copy=True)
    if plan.sequence and model.join_sequence is not None:
        model.join_sequence = partial(join_sequence, group=group)
    if group.size > 1 and isinstance(model.loss, TokenLoss):
        model.loss = SplitTokenLoss(group, in_half=model.loss.in_half)
    if group.size > 1 and model.linear_loss is not None:
        model.linear_loss = SplitLinearTokenLoss(group, sequence=plan.sequence)
    return layouts


_DIMENSIONS = {"column": 0, "row": 1, "vocabulary": 0, "head table": 1}


class _SlicedPositions:
    """Looks up the positions of this process's part of the sequence."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(self, table: Tensor, position_ids: Tensor) -> Tensor:
        part = divided(position_ids, self.group.size, SEQUENCE)[self.group.rank]
        return lookup(table, part)


def _layout(
    name: str, parameter: Tensor, row: LayerSplit, plan: _Plan, *, gated: bool
) -> ParamLayout:
    kind = name.rpartition(".")[2]
    shard_dim = None
    if kind == "weight":
        shard_dim = _DIMENSIONS.get(row.split)
    elif kind == "bias" and row.split == "column":
        shard_dim = 0
    of_tokens = plan.sequence and shard_dim is None
    return ParamLayout(
        name=name,
        full_shape=tuple(parameter.shape),
        shard_dim=shard_dim,
        num_shards=1 if shard_dim is None else plan.group.size,
        shard=0 if shard_dim is None else plan.group.rank,
        fold=2 if shard_dim == 0 and row.gated and gated else 1,
        partial_grad=plan.group.size > 1 and (of_tokens or row.split == "heads"),
    )


def _head_faults(model: StagedModel, group: Group) -> Iterator[str]:
    if any(block.layers for block in model.blocks.values()) and model.spec.num_groups % group.size:
        yield (
            f"{model.spec.num_groups} groups of query heads (--num-query-groups, or "
            f"--num-attention-heads) cannot be divided among {group.size} processes"
        )


def _division_faults(layout: ParamLayout) -> Iterator[str]:
    if layout.shard_dim is not None:
        size = layout.full_shape[layout.shard_dim] // layout.fold
        if size % layout.num_shards:
            yield (
                f"dimension {layout.shard_dim} of {layout.name} {list(layout.full_shape)} cannot "
                f"be divided among {layout.num_shards} processes"
            )


def _replace(module: nn.Module, split: Split, plan: _Plan) -> None:
    """Let a layer compute with the part of its parameters that this process has."""
    group, sequence, store = plan.group, plan.sequence, plan.store
    if isinstance(module, OutputLayer) and module.weight is None:
        # The word embedding gets a gradient from its lookup anyway: nothing is left for later.
        store = None
    if isinstance(module, Linear | OutputLayer):
        if group.size > 1 and split != "tokens":
            kind = ColumnProduct if split == "column" else RowProduct
            module.product = kind(group=group, sequence=sequence, overlap=plan.overlap, store=store)
        elif store is not None:
            module.product = partial(linear, store=store)
    elif isinstance(module, Table) and group.size > 1:
        if split == "vocabulary":
            module.lookup = SplitLookup(group=group, sequence=sequence)
        elif sequence and split == "positions":
            module.lookup = _SlicedPositions(group)


def _cut(module: nn.Module, kind: str, layout: ParamLayout) -> None:
    parameter = getattr(module, kind)
    if layout.is_sharded:
        local = parameter.new_empty(layout.local_shape)
        setattr(module, kind, nn.Parameter(local, requires_grad=parameter.requires_grad))

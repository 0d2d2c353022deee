"""Tensor and sequence parallelism, applied to a finished model by a table of its layers.

Each process of a group gets a part of the weights: `GPT_SPLITS` says of which layer what. The
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
from typing import Literal

from torch import Tensor, nn

from megacore.errors import UsageError
from megacore.layers.cross_entropy import TokenLoss
from megacore.layers.embedding import Table, lookup
from megacore.layers.linear import Linear
from megacore.models.gpt import GPTModel, OutputLayer
from megacore.parallel.collectives import divided
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout
from megacore.parallel.linear import OVERLAP, ColumnProduct, Overlap, RowProduct
from megacore.parallel.pieces import SEQUENCE
from megacore.parallel.stages import OUTPUT_WEIGHT, WORD_EMBEDDING
from megacore.parallel.vocabulary import SplitLookup, SplitTokenLoss
from megacore.parallel.weight_grad import WeightGradStore, linear

Split = Literal["column", "row", "vocabulary", "positions", "tokens", "heads"]
"""What happens to a layer.

column: each process has some of the outputs (rows of the weight).
row: each process has some of the inputs (columns of the weight); the bias is whole.
vocabulary: each process has some rows of the word embedding.
positions: whole table; a process looks up the positions of its tokens.
tokens: whole parameters that work on the residual stream (norms, the halves of adapters there).
heads: whole parameters that work on each head (norms of queries and keys).
"""


@dataclass(frozen=True, kw_only=True)
class LayerSplit:
    """One row of a table of splits.

    Attributes:
        layers: Pattern of the names of modules that have parameters; "*" is any text.
        split: What happens to them.
        gated: The outputs are two halves that belong together, when the model's MLP is gated.
    """

    layers: str
    split: Split
    gated: bool = False


GPT_SPLITS = (
    LayerSplit(layers="embedding.word_embeddings", split="vocabulary"),
    LayerSplit(layers="embedding.position_embeddings", split="positions"),
    LayerSplit(layers="decoder.layers.*.self_attention.linear_qkv", split="column"),
    LayerSplit(layers="decoder.layers.*.self_attention.[qk]_layernorm", split="heads"),
    LayerSplit(layers="decoder.layers.*.self_attention.linear_proj", split="row"),
    LayerSplit(layers="decoder.layers.*.mlp.linear_fc1", split="column", gated=True),
    LayerSplit(layers="decoder.layers.*.mlp.linear_fc2", split="row"),
    # The narrow side between the halves of an adapter is whole, like the residual stream.
    LayerSplit(layers="decoder.layers.*.linear_qkv.adapter.linear_in", split="tokens"),
    LayerSplit(layers="decoder.layers.*.linear_qkv.adapter.linear_out", split="column"),
    LayerSplit(layers="decoder.layers.*.linear_proj.adapter.linear_in", split="row"),
    LayerSplit(layers="decoder.layers.*.linear_proj.adapter.linear_out", split="tokens"),
    LayerSplit(layers="decoder.layers.*.linear_fc1.adapter.linear_in", split="tokens"),
    LayerSplit(layers="decoder.layers.*.linear_fc1.adapter.linear_out", split="column", gated=True),
    LayerSplit(layers="decoder.layers.*.linear_fc2.adapter.linear_in", split="row"),
    LayerSplit(layers="decoder.layers.*.linear_fc2.adapter.linear_out", split="tokens"),
    LayerSplit(layers="decoder.layers.*.post_*_layernorm", split="tokens"),
    LayerSplit(layers="decoder.final_layernorm", split="tokens"),
    LayerSplit(layers="output_layer", split="column"),
)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same for all layers of a model."""

    group: Group
    sequence: bool
    overlap: Overlap
    store: WeightGradStore | None


def apply_tensor_parallel(
    model: GPTModel,
    group: Group,
    *,
    sequence_parallel: bool = False,
    overlap: Overlap = OVERLAP,
    store: WeightGradStore | None = None,
    splits: Sequence[LayerSplit] = GPT_SPLITS,
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
    owners = {name: module for name, module in model.named_modules() if module._parameters}
    faults, layouts = list(_head_faults(model, group)), {}
    for name, module in owners.items():
        row = next((row for row in splits if fnmatchcase(name, row.layers)), None)
        if row is None:
            faults.append(f"{name} is in no row of the table of splits")
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            layout = _layout(f"{name}.{kind}", parameter, row, plan, gated=gated)
            layouts[layout.name] = layout
            faults += _division_faults(layout)
        if group.size > 1 or store is not None:
            _replace(module, row.split, plan)
    if faults:
        raise UsageError("the model cannot be split:\n" + "\n".join(f"  {f}" for f in faults))
    for name, layout in layouts.items():
        _cut(owners[name.rpartition(".")[0]], name.rpartition(".")[2], layout)
    output = model.output_layer
    if output is not None and output.tied and output.weight is not None:
        layouts[OUTPUT_WEIGHT] = replace(layouts[OUTPUT_WEIGHT], name=WORD_EMBEDDING, is_copy=True)
    if group.size > 1 and isinstance(model.loss, TokenLoss):
        model.loss = SplitTokenLoss(group, in_half=model.loss.in_half)
    return layouts


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
        shard_dim = {"column": 0, "row": 1, "vocabulary": 0}.get(row.split)
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


def _head_faults(model: GPTModel, group: Group) -> Iterator[str]:
    if model.decoder.layers and model.spec.num_groups % group.size:
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
        elif sequence:
            module.lookup = _SlicedPositions(group)


def _cut(module: nn.Module, kind: str, layout: ParamLayout) -> None:
    parameter = getattr(module, kind)
    if layout.is_sharded:
        local = parameter.new_empty(layout.local_shape)
        setattr(module, kind, nn.Parameter(local, requires_grad=parameter.requires_grad))

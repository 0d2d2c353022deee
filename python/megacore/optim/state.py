"""The state of an optimizer by parameter name: for checkpoints, which know no buckets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megacore.errors import CheckpointError
from megacore.optim.buffers import Bucket
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout

MAIN_PARAM = "main_param"


@dataclass(frozen=True)
class StatePiece:
    """A range of one state tensor that this process owns.

    Attributes:
        name: Name of the state tensor, such as "exp_avg.decoder.layers.0.mlp.linear_fc1.weight".
        layout: Which part of the full tensor this process has (tensor parallelism); its name is
            that of the full state tensor.
        start: First element, of the flattened part, that `data` holds.
        data: [count] view of the live state.
    """

    name: str
    layout: ParamLayout
    start: int
    data: Tensor


def kinds(bucket: Bucket) -> dict[str, Tensor]:
    """Kind of state -> own part of the bucket; main parameters if more precise."""
    main = {MAIN_PARAM: bucket.main} if bucket.stores_main else {}
    return {**main, **bucket.state}


def state_names(buckets: Iterable[Bucket]) -> dict[str, torch.Size]:
    """Name -> shape of every state tensor of the parameters on this process."""
    return {
        f"{kind}.{param.name}": param.param.shape
        for bucket in buckets
        for kind in kinds(bucket)
        for param in bucket.params
    }


def state_pieces(buckets: Iterable[Bucket]) -> Iterator[StatePiece]:
    """What this process owns of the state: views, nothing is communicated."""
    for bucket in buckets:
        for kind, flat in kinds(bucket).items():
            for piece in bucket.pieces:
                layout = piece.param.layout
                yield StatePiece(
                    f"{kind}.{piece.param.name}",
                    replace(layout, name=f"{kind}.{layout.name}"),
                    piece.start,
                    flat[piece.part],
                )


def gather_state(buckets: Iterable[Bucket], shard: Group) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything, in the shapes of this process's parameters.

    One bucket at a time is gathered from the processes that share it, which must all iterate. The
    tensors are valid until the next one is asked for; without a sharded optimizer they are views
    of the live state.
    """
    for bucket in buckets:
        for kind, own in kinds(bucket).items():
            whole = own
            if shard.size > 1:
                whole = own.new_empty(own.numel() * shard.size)
                shard.all_gather(whole, own)
            for param, view in bucket.views(whole):
                yield f"{kind}.{param.name}", view


def check_state(buckets: Iterable[Bucket], tensors: Mapping[str, Tensor]) -> None:
    """Makes sure that a stored state fits.

    Raises:
        CheckpointError: Names every missing, unexpected or misshapen tensor.
    """
    mine = state_names(buckets)
    faults = [f"missing: {name}" for name in mine if name not in tensors]
    faults += [f"unexpected: {name}" for name in tensors if name not in mine]
    faults += [
        f"{name}: expected {list(shape)}, found {list(tensors[name].shape)}"
        for name, shape in mine.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise CheckpointError(
            "the optimizer state does not fit this run:\n" + "\n".join(f"  {f}" for f in faults)
        )
